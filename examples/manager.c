/* manager: the ready-made program around manager.h. `manager --help` says what
 * it does. Options and commands stand in two tables, OPTIONS and COMMANDS, from
 * which parsing and every --help are made, so that they cannot drift apart.
 *
 *   cc -o manager examples/manager.c -I.
 */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "devconsul.h"

/* sysexits.h where it has a word for it; 3 is ours: asked for, and not so. */
enum {
    EXIT_OK = 0, EXIT_FAILED = 1, EXIT_NOT_CONVERGED = 3, EXIT_USAGE = 64,
    EXIT_NO_CLUSTER = 75, EXIT_EVICTED = 76, EXIT_DENIED = 77, EXIT_CONFIG = 78
};

enum {
    READ_TIMEOUT_MS = 15000,        /* one look at a service: longer than a leader election */
    WAIT_TIMEOUT_MS = 30000,        /* `wait` without --timeout */
    DEV_INSTANCES_MAX = 64,
    DEV_LEFTOVER_MS = 30000,
    HELP_COLUMN = 31,               /* where an option's help begins */
    LINE_BYTES_MAX = 4000           /* a log line: below PIPE_BUF, so that a pipe takes it whole or not at all */
};

/* ============================================================================
 * Text that grows. A failure sticks and is looked at once, at the end.
 * ========================================================================== */

typedef struct text { char *at; size_t len, cap; bool failed; } text;

static bool text_room(text *t, size_t more)
{
    if (t->failed) return false;
    if (t->len + more + 1 <= t->cap) return true;
    size_t cap = (t->len + more + 1) * 2;
    char *at = (char *)realloc(t->at, cap);
    if (!at) { t->failed = true; return false; }
    t->at = at;
    t->cap = cap;
    return true;
}

static void text_bytes(text *t, const char *bytes, size_t len)
{
    if (!text_room(t, len)) return;
    if (len) memcpy(t->at + t->len, bytes, len);
    t->len += len;
    t->at[t->len] = 0;
}

static void text_add(text *t, const char *s) { text_bytes(t, s, strlen(s)); }

static void text_vformat(text *t, const char *format, va_list args) MGR__PRINTF(2, 0);
static void text_vformat(text *t, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    if (len >= 0 && text_room(t, (size_t)len)) {
        vsnprintf(t->at + t->len, (size_t)len + 1, format, again);
        t->len += (size_t)len;
    }
    va_end(again);
}

static void text_format(text *t, const char *format, ...) MGR__PRINTF(2, 3);
static void text_format(text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_vformat(t, format, args);
    va_end(args);
}

static void text_spaces(text *t, size_t count) { while (count--) text_bytes(t, " ", 1); }

/* RFC 8259, section 7. */
static void text_json(text *t, const char *s)
{
    text_add(t, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') text_format(t, "\\%c", c);
        else if (c < 0x20 || c == 0x7f) text_format(t, "\\u%04x", c);
        else text_bytes(t, s, 1);
    }
    text_add(t, "\"");
}

static void text_json_or_null(text *t, const char *s)
{
    if (s && *s) text_json(t, s);
    else text_add(t, "null");
}

/* Lines of at most 110 columns, broken between words and indented; the first goes on at `column`. */
static void text_paragraph(text *t, const char *words, size_t indent, size_t column)
{
    enum { COLUMNS = 110 };
    while (*words) {
        size_t len = strcspn(words, " ");
        bool fits = column == 0 || column + 1 + len <= COLUMNS, first = column <= indent;
        if (!fits) text_add(t, "\n");
        if (!fits || column == 0) { text_format(t, "%*s", (int)indent, ""); column = indent; first = true; }
        text_format(t, "%s%.*s", first ? "" : " ", (int)len, words);
        column += (first ? 0 : 1) + len;
        words += len + (words[len] == ' ');
    }
    text_add(t, "\n");
}

static const char *text_of(const text *t) { return t->at ? t->at : ""; }

static void text_free(text *t)
{
    free(t->at);
    memset(t, 0, sizeof *t);
}

/* "250ms", "10s", "1.5s", "5m": what --lease and its like read, and what is shown. */
static void text_duration(text *t, int64_t ms)
{
    int digits = ms % 10 ? 3 : ms % 100 ? 2 : 1;
    if (ms < 1000) text_format(t, ms ? "%lldms" : "%llds", (long long)ms);
    else if (ms % 60000 == 0) text_format(t, "%lldm", (long long)(ms / 60000));
    else if (ms % 1000 == 0) text_format(t, "%llds", (long long)(ms / 1000));
    else text_format(t, "%.*fs", digits, (double)ms / 1000);
}

/* "1 partition", "2 partitions". */
static void text_count(text *t, size_t count, const char *noun)
{
    text_format(t, "%zu %s%s", count, noun, count == 1 ? "" : "s");
}

/* RFC 3339, UTC, to the millisecond. */
static void text_now(text *t)
{
    struct timespec now;
    struct tm utc;
    char date[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
    text_format(t, "%s.%03dZ", date, (int)(now.tv_nsec / 1000000));
}

static void *must(void *block)
{
    if (block) return block;
    fputs("manager: out of memory\n", stderr);
    exit(EXIT_FAILED);
}

/* ============================================================================
 * Lists of names: `0..15`, `a,b,c`, `@file`
 * ========================================================================== */

typedef struct list { char **names; size_t count, cap; } list;

static void list_add(list *l, const char *name, size_t len)
{
    if (l->count == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 16;
        l->names = (char **)must(realloc(l->names, l->cap * sizeof *l->names));
    }
    char *copy = (char *)must(malloc(len + 1));
    memcpy(copy, name, len);
    copy[len] = 0;
    l->names[l->count++] = copy;
}

static void list_free(list *l)
{
    for (size_t i = 0; i < l->count; i++) free(l->names[i]);
    free(l->names);
    memset(l, 0, sizeof *l);
}

static const char *const *list_names(const list *l) { return (const char *const *)l->names; }

static bool all_digits(const char *name) { return *name && name[strspn(name, "0123456789")] == 0; }

/* The order for people: numbers first and by value, then names by their bytes. */
static int name_order(const char *a, const char *b)
{
    if (!all_digits(a) || !all_digits(b)) return all_digits(a) != all_digits(b) ? (all_digits(a) ? -1 : 1) : strcmp(a, b);
    const char *x = a + strspn(a, "0"), *y = b + strspn(b, "0");
    if (strlen(x) != strlen(y)) return strlen(x) < strlen(y) ? -1 : 1;
    int by_value = strcmp(x, y);
    return by_value ? by_value : strcmp(a, b);
}

/* Names in order, each with its place in the list: to find one among many. */
typedef struct place { const char *name; size_t index; } place;

static int place_order(const void *a, const void *b)
{
    return strcmp(((const place *)a)->name, ((const place *)b)->name);
}

/* Owned by the caller: free it. */
static place *places_of(const char *const *names, size_t count)
{
    place *places = (place *)must(malloc((count + 1) * sizeof *places));
    for (size_t i = 0; i < count; i++) { places[i].name = names[i]; places[i].index = i; }
    qsort(places, count, sizeof *places, place_order);
    return places;
}

static bool places_find(const place *places, size_t count, const char *name, size_t *index)
{
    place key = { name, 0 };
    const place *found = (const place *)bsearch(&key, places, count, sizeof *places, place_order);
    if (found) *index = found->index;
    return found != NULL;
}

/* ============================================================================
 * Options: one table
 * ========================================================================== */

enum {
    RUN = 1, DEV = 2, STATUS = 4, WAIT = 8, PARTITIONS = 16, EVICT = 32, DRAIN = 64,
    UNDRAIN = 128, WHY = 256, PLAN = 512, TIMINGS = 1024, PAUSE = 2048, RESUME = 4096,
    ADMIN = PARTITIONS | EVICT | DRAIN | UNDRAIN | PAUSE | RESUME,
    LOOK = STATUS | WAIT | WHY | PLAN,
    ANY = RUN | DEV | ADMIN | LOOK | TIMINGS     /* an option whose text differs stands there once for each */
};

/* Times in milliseconds; 0: not given; MGR_NONE: given as nothing ("0s"). */
typedef struct options {
    const char *service, *service_name, *instance;
    const char *consul, *token_file, *prefix, *config, *check_script, *directory;
    const char *reason;
    list     partitions, instances, tags, add, remove, reweigh;
    list     kept;                  /* values of the configuration file, and paths made absolute */
    uint32_t weight, dev_count, moves_max, breaker_percent, live;
    uint32_t lease_ms, delay_ms, ttl_ms, stop_grace_ms, rejoin_grace_ms, settle_ms, start_timeout_ms;
    uint32_t check_ttl_ms, check_interval_ms, timeout_ms;
    int      stop_signal;
    mgr_isolate isolate;
    const char *run_dir;
    mgr_placement placement;
    bool     once, shell, json, watch, yes, log_json;
    char     fault[256];            /* where a setter writes a text that it has to compose */
} options;

/* Store a value, or say what is wrong with it: a text that goes on after the
 * option's name and value. Flags come as "yes" or "no". */
typedef const char *(*setter)(options *o, void *field, const char *value);

static const char *set_text(options *o, void *field, const char *value)
{
    (void)o;
    if (!*value) return "is empty";
    *(const char **)field = value;
    return NULL;
}

static const char *set_flag(options *o, void *field, const char *value)
{
    (void)o;
    if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0) return "is neither yes nor no";
    *(bool *)field = value[0] == 'y';
    return NULL;
}

static const char *set_duration(options *o, void *field, const char *value)
{
    static const struct { const char *unit; double ms; } UNITS[] = { {"ms", 1}, {"s", 1000}, {"m", 60000} };
    (void)o;
    if (*value < '0' || *value > '9') return "is no duration: say 250ms, 10s or 5m";
    char *end;
    double number = strtod(value, &end);
    for (size_t i = 0; i < sizeof UNITS / sizeof *UNITS; i++) {
        if (strcmp(end, UNITS[i].unit) != 0) continue;
        double ms = number * UNITS[i].ms;
        if (!(ms <= 0x7fffffff)) return "is longer than 24 days";
        *(uint32_t *)field = ms < 1 ? MGR_NONE : (uint32_t)ms;
        return NULL;
    }
    return *end ? "has an unknown unit: say 250ms, 10s or 5m" : "needs a unit: say 250ms, 10s or 5m";
}

static bool number_in(const char *value, unsigned long low, unsigned long high, unsigned long *out)
{
    size_t len = strlen(value);
    if (!len || len > 9 || strspn(value, "0123456789") != len) return false;
    *out = strtoul(value, NULL, 10);
    return *out >= low && *out <= high;
}

static const char *set_number(options *o, void *field, const char *value)
{
    unsigned long number;
    (void)o;
    if (!number_in(value, 1, 65535, &number)) return "is no number from 1 to 65535";
    *(uint32_t *)field = (uint32_t)number;
    return NULL;
}

static const char *set_breaker(options *o, void *field, const char *value)
{
    unsigned long number;
    size_t len = strlen(value);
    char digits[8] = "";
    (void)o;
    if (len && len < sizeof digits) memcpy(digits, value, value[len - 1] == '%' ? len - 1 : len);
    if (strcmp(value, "none") == 0) number = MGR_NONE;
    else if (!number_in(digits, 1, 100, &number)) return "is neither none nor a share from 1 to 100";
    *(uint32_t *)field = (uint32_t)number;
    return NULL;
}

static const char *set_dev_count(options *o, void *field, const char *value)
{
    unsigned long number;
    if (!number_in(value, 1, DEV_INSTANCES_MAX, &number)) {
        snprintf(o->fault, sizeof o->fault, "is no number from 1 to %d", DEV_INSTANCES_MAX);
        return o->fault;
    }
    *(uint32_t *)field = (uint32_t)number;
    return NULL;
}

static const char *set_signal(options *o, void *field, const char *value)
{
    static const struct { const char *name; int number; } SIGNALS[] = {
        {"TERM", SIGTERM}, {"INT", SIGINT}, {"HUP", SIGHUP}, {"QUIT", SIGQUIT},
        {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"WINCH", SIGWINCH}, {"KILL", SIGKILL}
    };
    (void)o;
    const char *name = strncmp(value, "SIG", 3) == 0 ? value + 3 : value;
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) {
        if (strcmp(name, SIGNALS[i].name) != 0) continue;
        *(int *)field = SIGNALS[i].number;
        return NULL;
    }
    return "is none of TERM, INT, HUP, QUIT, USR1, USR2, WINCH, KILL";
}

static const char *set_isolate(options *o, void *field, const char *value)
{
    static const struct { const char *name; mgr_isolate isolate; } WAYS[] = {
        {"auto", MGR_ISOLATE_AUTO}, {"none", MGR_ISOLATE_NONE}, {"cgroup", MGR_ISOLATE_CGROUP}, {"pidns", MGR_ISOLATE_PIDNS}
    };
    (void)o;
    for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++) {
        if (strcmp(value, WAYS[i].name) != 0) continue;
        *(mgr_isolate *)field = WAYS[i].isolate;
        return NULL;
    }
    return "is none of auto, none, cgroup, pidns";
}

static const char *placement_word(mgr_placement placement) { return placement == MGR_PLACEMENT_SLOTS ? "slots" : "rush"; }

static const char *set_placement(options *o, void *field, const char *value)
{
    static const mgr_placement KNOWN[] = { MGR_PLACEMENT_RUSH, MGR_PLACEMENT_SLOTS };
    (void)o;
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++) {
        if (strcmp(value, placement_word(KNOWN[i])) != 0) continue;
        *(mgr_placement *)field = KNOWN[i];
        return NULL;
    }
    return "is none of rush, slots";
}

static const char *set_log_format(options *o, void *field, const char *value)
{
    (void)o;
    if (strcmp(value, "text") != 0 && strcmp(value, "json") != 0) return "is neither text nor json";
    *(bool *)field = value[0] == 'j';
    return NULL;
}

static const char *set_one_more(options *o, void *field, const char *value)
{
    (void)o;
    if (!*value) return "is empty";
    list_add((list *)field, value, strlen(value));
    return NULL;
}

/* Absolute: who starts COMMAND, the keeper, stands in another directory than we do. */
static const char *set_directory(options *o, void *field, const char *value)
{
    struct stat info;
    char *path = realpath(value, NULL);
    bool found = path && stat(path, &info) == 0, fine = found && S_ISDIR(info.st_mode) && access(path, X_OK) == 0;
    if (!fine) snprintf(o->fault, sizeof o->fault, "cannot be entered: %s", strerror(found && !S_ISDIR(info.st_mode) ? ENOTDIR : errno));
    else {
        list_add(&o->kept, path, strlen(path));
        *(const char **)field = o->kept.names[o->kept.count - 1];
    }
    free(path);
    return fine ? NULL : o->fault;
}

/* Absolute as well; whether it will do is the library's to say, which may make it. */
static const char *set_path(options *o, void *field, const char *value)
{
    char here[PATH_MAX];
    text path = { NULL, 0, 0, false };
    if (!value[0]) return "is empty";
    if (value[0] != '/' && !getcwd(here, sizeof here)) {
        snprintf(o->fault, sizeof o->fault, "is relative to a directory that is gone: %s", strerror(errno));
        return o->fault;
    }
    if (value[0] == '/') text_add(&path, value);
    else text_format(&path, "%s/%s", here, value);
    list_add(&o->kept, path.at, path.len);
    *(const char **)field = o->kept.names[o->kept.count - 1];
    free(path.at);
    return NULL;
}

/* A design decision that users of other tools will look for: say where to look instead. */
static const char *set_http(options *o, void *field, const char *value)
{
    (void)o; (void)field; (void)value;
    return "is not built in: use `manager status --json`, or Consul's own health endpoints";
}

/* ---- LIST ---- */

static const char *list_item(options *o, list *l, const char *item, size_t len)
{
    const char *dots = strstr(item, "..");
    if (!len) return "has an empty name";
    if (!dots || dots + 2 > item + len) { list_add(l, item, len); return NULL; }
    size_t low_len = (size_t)(dots - item), high_len = len - low_len - 2;
    bool numbers = strspn(item, "0123456789") == low_len && strspn(dots + 2, "0123456789") == high_len;
    if (!low_len || !high_len || !numbers) {
        snprintf(o->fault, sizeof o->fault, "has \"%.*s\", which is no range: say 0..15, or put such names in an @FILE",
                 (int)(len < 60 ? len : 60), item);
        return o->fault;
    }
    if ((*item == '0' && low_len > 1) || (dots[2] == '0' && high_len > 1)) return "has a range with leading zeros: say 0..15";
    if (low_len > 9 || high_len > 9) return "has a number of more than nine digits";
    unsigned long low = strtoul(item, NULL, 10), high = strtoul(dots + 2, NULL, 10);
    if (low > high) return "has a range that runs backwards: say 0..15";
    if (high - low >= MGR_PARTITION_COUNT_MAX) {
        snprintf(o->fault, sizeof o->fault, "has more than %d names", MGR_PARTITION_COUNT_MAX);
        return o->fault;
    }
    for (unsigned long i = low; i <= high; i++) {
        char name[24];
        int name_len = snprintf(name, sizeof name, "%lu", i);
        list_add(l, name, (size_t)name_len);
    }
    return NULL;
}

static const char *list_read(options *o, list *l, const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(o->fault, sizeof o->fault, "cannot be read: %s", strerror(errno));
        return o->fault;
    }
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    while ((len = getline(&line, &cap, file)) >= 0) {
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (len > 0) list_add(l, line, (size_t)len);
    }
    bool failed = ferror(file) != 0;
    free(line);
    fclose(file);
    return failed ? "cannot be read to its end" : NULL;
}

static const char *list_faults(options *o, const list *l)
{
    if (!l->count) return "names nothing";
    if (l->count > MGR_PARTITION_COUNT_MAX) {
        snprintf(o->fault, sizeof o->fault, "has more than %d names", MGR_PARTITION_COUNT_MAX);
        return o->fault;
    }
    place *places = places_of(list_names(l), l->count);
    const char *fault = NULL;
    for (size_t i = 1; i < l->count && !fault; i++) {
        if (strcmp(places[i - 1].name, places[i].name) != 0) continue;
        snprintf(o->fault, sizeof o->fault, "has \"%.200s\" twice", places[i].name);
        fault = o->fault;
    }
    free(places);
    return fault;
}

static const char *set_list(options *o, void *field, const char *value)
{
    list *l = (list *)field;
    const char *fault = NULL;
    list_free(l);
    if (*value == '@') fault = list_read(o, l, value + 1);
    else for (const char *item = value; item && !fault;) {
        size_t len = strcspn(item, ",");
        fault = list_item(o, l, item, len);
        item = item[len] ? item + len + 1 : NULL;
    }
    return fault ? fault : list_faults(o, l);
}

typedef struct option {
    const char *name;
    char        letter;             /* 0: none */
    const char *argument;           /* NULL: a flag */
    unsigned    commands;
    setter      set;
    size_t      offset;             /* of its field in options */
    const char *help;               /* NULL: not shown */
} option;

#define AT(field) offsetof(options, field)

static const option OPTIONS[] = {
    {"service", 's', "SERVICE", ANY, set_text, AT(service), "id of the service"},
    {"instance", 'i', "INSTANCE", RUN, set_text, AT(instance), "id of this instance; default: the host's name"},
    {"partitions", 'p', "LIST", RUN, set_list, AT(partitions), "the partition set; without it, the one that stands"},
    {"partitions", 'p', "LIST", DEV, set_list, AT(partitions), "the partition set; required without --consul, whose agent may have one"},
    {"partitions", 'p', "LIST", PLAN, set_list, AT(partitions), "as if this were the partition set; without it, the one that stands"},
    {"placement", 0, "POLICY", RUN | DEV, set_placement, AT(placement),
     "rush or slots: of a first set; one that stands is followed. Default rush"},
    {"placement", 0, "POLICY", PARTITIONS, set_placement, AT(placement),
     "rush or slots: how they are placed from now on; default as before"},
    {"placement", 0, "POLICY", PLAN, set_placement, AT(placement),
     "as if they were placed by rush or slots; without it, as the service is"},
    {"count", 'n', "INSTANCES", DEV, set_dev_count, AT(dev_count), "how many instances; default 3"},
    {"once", 0, NULL, RUN | DEV, set_flag, AT(once),
     "do not restart COMMAND when it ends; it runs again where the partition moves to, or its instance is restarted"},
    {"shell", 0, NULL, RUN | DEV, set_flag, AT(shell), "COMMAND is one argument, for sh -c; nothing in it is replaced"},
    {"directory", 0, "DIR", RUN | DEV, set_directory, AT(directory), "where COMMAND starts; default: the directory this is called in"},
    {"weight", 0, "NUMBER", RUN, set_number, AT(weight), "share of the work against other instances; default 1"},
    {"moves-max", 0, "NUMBER", RUN | DEV, set_number, AT(moves_max), "hand over at most so many partitions at a time; default no limit"},
    {"breaker", 0, "PERCENT", RUN | DEV, set_breaker, AT(breaker_percent),
     "when more than this share of the instances vanishes at once, hold planned moves until all is still; none: never; default 50"},
    {"service-name", 0, "NAME", RUN | DEV, set_text, AT(service_name), "what Consul shows; default: the id"},
    {"tag", 0, "TAG", RUN | DEV, set_one_more, AT(tags), "of the Consul service; may be repeated"},
    {"stop-signal", 0, "SIGNAL", RUN | DEV, set_signal, AT(stop_signal), "polite stop of COMMAND; default TERM"},
    {"stop-grace", 0, "DURATION", RUN | DEV | TIMINGS, set_duration, AT(stop_grace_ms),
     "from the polite stop to SIGKILL; default a third of the lease"},
    {"lease", 0, "DURATION", RUN | DEV | TIMINGS, set_duration, AT(lease_ms), "how long to go on without a confirmation; default 15s"},
    {"delay", 0, "DURATION", RUN | DEV | TIMINGS, set_duration, AT(delay_ms),
     "how long others wait for a death nobody proved; default the lease and a margin: 16s"},
    {"ttl", 0, "DURATION", RUN | DEV | TIMINGS, set_duration, AT(ttl_ms), "of the Consul session; default 15s, at least 10s"},
    {"rejoin-grace", 0, "DURATION", RUN | DEV | TIMINGS, set_duration, AT(rejoin_grace_ms),
     "keep the share of an instance that died, or was restarted, for its return; default none"},
    {"settle", 0, "DURATION", RUN | DEV | TIMINGS, set_duration, AT(settle_ms), "a joiner waits so long before it takes part; default 1s"},
    {"isolate", 0, "HOW", RUN | DEV, set_isolate, AT(isolate),
     "auto, none, cgroup, or pidns (COMMAND sees other pids): what keeps a worker's processes together; default auto"},
    {"run-dir", 0, "DIR", RUN | DEV, set_path, AT(run_dir),
     "directory for life files, so that a restart on this host need not wait the delay: "
     "mode 0700 and ours, below none that others can write to, else refused; "
     "default XDG_RUNTIME_DIR, /run/manager or /tmp/manager-UID, and without proof where none will do"},
    {"start-timeout", 0, "DURATION", RUN | DEV, set_duration, AT(start_timeout_ms),
     "give up when the cluster is not entered by then; default never"},
    {"check-script", 0, "COMMAND", RUN | DEV, set_text, AT(check_script),
     "sh -c COMMAND a partition: exit 0 passes, 1 warns, else it goes to another instance"},
    {"check-interval", 0, "DURATION", RUN | DEV, set_duration, AT(check_interval_ms), "between two runs of the script; default 10s"},
    {"check-ttl", 0, "DURATION", RUN | DEV, set_duration, AT(check_ttl_ms),
     "COMMAND has to PUT /v1/agent/check/pass/$MANAGER_CHECK_ID so often, else it goes to another instance"},
    {"log-format", 0, "FORMAT", RUN | DEV, set_log_format, AT(log_json), "text or json: event lines on stderr"},
    {"config", 0, "FILE", RUN | DEV | TIMINGS, set_text, AT(config), "lines `option = value`, long names; the command line wins"},
    {"instances", 0, "LIST", PLAN, set_list, AT(instances), "ID[:WEIGHT]...: plan on paper, for these instead of a running service"},
    {"add", 0, "ID[:WEIGHT]", PLAN, set_one_more, AT(add), "as if this instance joined; may be repeated"},
    {"remove", 0, "ID", PLAN, set_one_more, AT(remove), "as if this instance left; may be repeated"},
    {"weight", 0, "ID=WEIGHT", PLAN, set_one_more, AT(reweigh),
     "as if this instance had that weight; refused for one that is draining; may be repeated"},
    {"reason", 0, "TEXT", PAUSE, set_text, AT(reason), "why, for those who look"},
    {"json", 0, NULL, STATUS | PLAN | TIMINGS, set_flag, AT(json), "one line of JSON instead of a table"},
    {"watch", 0, NULL, STATUS, set_flag, AT(watch), "show it again whenever it changes"},
    {"timeout", 0, "DURATION", WAIT, set_duration, AT(timeout_ms), "give up after so long; default 30s"},
    {"live", 0, "NUMBER", WAIT, set_number, AT(live), "and until at least so many instances are live; default 1"},
    {"yes", 0, NULL, EVICT, set_flag, AT(yes), "do not ask"},
    {"consul", 0, "ADDR[,ADDR]", ANY & ~DEV, set_text, AT(consul), "host:port or unix:///path; else CONSUL_HTTP_ADDR, else 127.0.0.1:8500"},
    {"consul", 0, "ADDR[,ADDR]", DEV, set_text, AT(consul), "host:port or unix:///path: use that agent instead of the one built in"},
    {"token-file", 0, "FILE", ANY, set_text, AT(token_file), "Consul token; else CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE"},
    {"prefix", 0, "KV_PREFIX", ANY, set_text, AT(prefix), "where the keys stand; default manager"},
    {"http", 0, "ADDR", RUN, set_http, 0, NULL}
};

enum { OPTION_COUNT = sizeof OPTIONS / sizeof *OPTIONS };

struct command;

typedef struct program {
    options     opt;
    const struct command *command;
    bool        given[OPTION_COUNT];
    char      **words;              /* positional arguments, or COMMAND */
    size_t      word_count;
    char        keeper_name[16];
    char       *keeper_argv[2];
    int         log_fd;             /* stderr without waiting, -1: as log_put does without */
    bool        log_cut;            /* of the line before only a part was taken */
    size_t      dropped;            /* log lines that nobody would have taken */
    char        last_words[400];    /* the last event that can be the reason for an end */
} program;

typedef struct command {
    const char *name;
    unsigned    bit;
    const char *synopsis;
    const char *summary;
    const char *details;            /* several lines, or "" */
    const char *word;               /* its positional argument, NULL: none */
    bool        takes_command;      /* -- COMMAND [ARG...] */
    bool        needs_service;
    int       (*run)(program *p);
} command;

/* One line on stderr: who speaks, what failed, on what, what to do. */
static void say(const program *p, const char *format, ...) MGR__PRINTF(2, 3);
static void say(const program *p, const char *format, ...)
{
    text line = { NULL, 0, 0, false };
    va_list args;
    text_format(&line, "manager%s%s: ", p->command ? " " : "", p->command ? p->command->name : "");
    va_start(args, format);
    text_vformat(&line, format, args);
    va_end(args);
    text_add(&line, "\n");
    fputs(text_of(&line), stderr);
    text_free(&line);
}

/* ============================================================================
 * Reading the command line and the configuration file
 * ========================================================================== */

static const option *option_named(unsigned commands, const char *name, size_t len)
{
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if ((OPTIONS[i].commands & commands) && strlen(OPTIONS[i].name) == len && memcmp(OPTIONS[i].name, name, len) == 0)
            return &OPTIONS[i];
    return NULL;
}

static const option *option_lettered(unsigned commands, char letter)
{
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if ((OPTIONS[i].commands & commands) && OPTIONS[i].letter == letter) return &OPTIONS[i];
    return NULL;
}

static const char *option_store(program *p, const option *o, const char *value)
{
    char *fields = (char *)&p->opt;
    return o->set(&p->opt, fields + o->offset, value);
}

/* One option at argv[*at]; steps over its value. */
static int parse_option(program *p, int argc, char **argv, int *at)
{
    const char *arg = argv[*at];
    bool is_long = arg[1] == '-';
    size_t name_len = is_long ? strcspn(arg + 2, "=") : 1;
    unsigned bit = p->command->bit;
    const option *o = is_long ? option_named(bit, arg + 2, name_len) : option_lettered(bit, arg[1]);
    int shown = (int)(is_long ? name_len + 2 : 2);
    if (!o) {
        say(p, "unknown option %.*s; see manager %s --help", shown, arg, p->command->name);
        return EXIT_USAGE;
    }
    const char *value = arg[shown] ? arg + shown + (is_long ? 1 : 0) : NULL;
    if (!o->argument && value) {
        say(p, "--%s takes no value", o->name);
        return EXIT_USAGE;
    }
    if (!o->argument) value = "yes";
    if (!value && *at + 1 < argc) value = argv[++*at];
    if (!value) {
        say(p, "--%s needs a value: --%s %s", o->name, o->name, o->argument);
        return EXIT_USAGE;
    }
    const char *fault = option_store(p, o, value);
    if (fault) {
        say(p, "--%s \"%s\" %s", o->name, value, fault);
        return EXIT_USAGE;
    }
    p->given[o - OPTIONS] = true;
    return EXIT_OK;
}

/* What may stand in COMMAND's arguments, and what has the same in its environment. */
static const struct { const char *braces, *variable; } REPLACED[] = {
    {"{partition}", "MANAGER_PARTITION"}, {"{instance}", "MANAGER_INSTANCE"}, {"{service}", "MANAGER_SERVICE"}, {"{fence}", "MANAGER_FENCE"}
};

enum { REPLACED_COUNT = sizeof REPLACED / sizeof *REPLACED };

static void shell_warning(const program *p)
{
    for (size_t i = 0; i < REPLACED_COUNT; i++)
        if (p->opt.shell && strstr(p->words[0], REPLACED[i].braces))
            say(p, "warning: --shell replaces nothing, so %s stays as it is: write \"$%s\" instead",
                REPLACED[i].braces, REPLACED[i].variable);
}

static int parse_words(program *p)
{
    const command *c = p->command;
    if (c->takes_command && !p->word_count) {
        say(p, "no command given: put it last, after --, as in manager %s %s", c->name, c->synopsis);
        return EXIT_USAGE;
    }
    bool optional = c->bit == PARTITIONS && p->opt.placement;
    if (c->word && p->word_count != 1 && !(optional && !p->word_count)) {
        say(p, "needs exactly one %s%s: manager %s %s", c->word, c->bit == PARTITIONS ? ", or --placement" : "", c->name, c->synopsis);
        return EXIT_USAGE;
    }
    if (p->opt.shell && p->word_count > 1) {
        say(p, "--shell takes the command as one argument: quote it");
        return EXIT_USAGE;
    }
    if (p->opt.check_interval_ms && !p->opt.check_script) {
        say(p, "--check-interval belongs to --check-script, which is not given");
        return EXIT_USAGE;
    }
    if (c->needs_service && !p->opt.service) {
        say(p, "no service given: add -s SERVICE");
        return EXIT_USAGE;
    }
    shell_warning(p);
    return EXIT_OK;
}

static int parse_arguments(program *p, int argc, char **argv)
{
    int fault = EXIT_OK, at = 0;
    p->words = argv;                /* positional arguments are moved to its front */
    for (; at < argc && !fault; at++) {
        if (strcmp(argv[at], "--") == 0) { at++; break; }
        if (argv[at][0] == '-' && argv[at][1]) fault = parse_option(p, argc, argv, &at);
        else if (p->command->word) p->words[p->word_count++] = argv[at];
        else {
            say(p, p->command->takes_command ? "\"%s\" is no option: put -- before the command"
                                             : "unexpected argument \"%s\"", argv[at]);
            fault = EXIT_USAGE;
        }
    }
    if (fault) return fault;
    if (p->command->takes_command) { p->words = argv + at; p->word_count = (size_t)(argc - at); }
    else while (at < argc) p->words[p->word_count++] = argv[at++];
    return EXIT_OK;
}

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t') s++;
    size_t len = strlen(s);
    while (len && strchr(" \t\r\n", s[len - 1])) s[--len] = 0;
    return s;
}

/* One line of a configuration file: `option = value`, `#` begins a comment line. */
static bool config_line(program *p, char *line, unsigned number)
{
    char *name = trim(line);
    if (!*name || *name == '#') return true;
    char *equals = strchr(name, '=');
    if (!equals) {
        say(p, "%s:%u: \"%s\" is not of the form option = value", p->opt.config, number, name);
        return false;
    }
    *equals = 0;
    name = trim(name);
    const char *value = trim(equals + 1);
    const option *o = option_named(RUN, name, strlen(name)), *here = option_named(p->command->bit, name, strlen(name));
    if (!o || o->offset == AT(config)) {
        say(p, "%s:%u: unknown option \"%s\"; see manager run --help", p->opt.config, number, name);
        return false;
    }
    if (p->given[(here ? here : o) - OPTIONS]) return true;
    list_add(&p->opt.kept, value, strlen(value));
    const char *fault = option_store(p, o, p->opt.kept.names[p->opt.kept.count - 1]);
    if (fault) say(p, "%s:%u: %s \"%s\" %s", p->opt.config, number, o->name, value, fault);
    return !fault;
}

static int config_read(program *p)
{
    FILE *file = fopen(p->opt.config, "r");
    if (!file) {
        say(p, "--config %s cannot be read: %s", p->opt.config, strerror(errno));
        return EXIT_CONFIG;
    }
    char *line = NULL;
    size_t cap = 0;
    bool fine = true;
    for (unsigned number = 1; fine && getline(&line, &cap, file) >= 0; number++) fine = config_line(p, line, number);
    free(line);
    fclose(file);
    return fine ? EXIT_OK : EXIT_CONFIG;
}

/* ============================================================================
 * Results, instances, views
 * ========================================================================== */

/* The one place where a result becomes an exit code. */
static int exit_code_of(mgr_result result)
{
    static const struct { mgr_result result; int code; } CODES[] = {
        {MGR_OK, EXIT_OK}, {MGR_LEFT, EXIT_OK},
        {MGR_UNREACHABLE, EXIT_NO_CLUSTER}, {MGR_TIMEOUT, EXIT_NO_CLUSTER}, {MGR_LOST, EXIT_NO_CLUSTER},
        {MGR_EVICTED, EXIT_EVICTED}, {MGR_DENIED, EXIT_DENIED},
        {MGR_IDENTITY, EXIT_CONFIG}, {MGR_INVALID, EXIT_CONFIG}
    };
    for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++)
        if (CODES[i].result == result) return CODES[i].code;
    return EXIT_FAILED;
}

/* The library speaks of fields of its descriptor, people of our options. */
typedef struct field_word { const char *field, *word, *unit; } field_word;

static const field_word FIELD_WORDS[] = {
    {"lease_ms", "--lease", "ms"}, {"delay_ms", "--delay", "ms"}, {"stop_grace_ms", "--stop-grace", "ms"},
    {"breaker_percent", "--breaker", ""}, {"session_ttl_ms", "--ttl", "ms"}, {"settle_ms", "--settle", "ms"},
    {"rejoin_grace_ms", "--rejoin-grace", "ms"},
    {"start_timeout_ms", "--start-timeout", "ms"}, {"consul_token_file", "--token-file", ""}, {"consul_addr", "--consul", ""},
    {"kv_prefix", "--prefix", ""}, {"service_id", "service", ""}, {"service_name", "--service-name", ""},
    {"instance_id", "instance", ""}, {"weight", "--weight", ""}, {"run_dir", "--run-dir", ""}
};

static const field_word *field_at(const char *at, size_t len)
{
    for (size_t i = 0; i < sizeof FIELD_WORDS / sizeof *FIELD_WORDS; i++)
        if (strlen(FIELD_WORDS[i].field) == len && memcmp(FIELD_WORDS[i].field, at, len) == 0) return &FIELD_WORDS[i];
    return NULL;
}

/* A number right behind a field, or behind "is", gets its unit. What stands in quotes is the user's. */
static void text_in_options(text *out, const char *s)
{
    const char *unit = "";
    bool quoted = false;
    while (*s) {
        size_t len = strspn(s, "abcdefghijklmnopqrstuvwxyz_0123456789"), digits = strspn(s, "0123456789");
        const field_word *known = quoted ? NULL : field_at(s, len);
        if (known) { text_add(out, known->word); unit = known->unit; }
        else text_bytes(out, s, len ? len : 1);
        if (!known && len) {
            if (digits == len) text_add(out, unit);
            if (!(len == 2 && memcmp(s, "is", 2) == 0)) unit = "";
        }
        quoted = quoted != (*s == '"');
        s += len ? len : 1;
    }
}

static int failed(const program *p, const mgr *m, mgr_result result)
{
    text why = { NULL, 0, 0, false };
    text_in_options(&why, m ? mgr_error_text(m) : mgr_result_text(result));
    say(p, "%s", text_of(&why));
    text_free(&why);
    return exit_code_of(result);
}

static void describe(const program *p, mgr_desc *desc)
{
    const options *o = &p->opt;
    memset(desc, 0, sizeof *desc);
    desc->service_id = o->service;
    desc->service_name = o->service_name ? o->service_name : o->service;
    desc->consul_addr = o->consul;
    desc->consul_token_file = o->token_file;
    desc->kv_prefix = o->prefix;
}

/* All commands but run and dev look on: no session, no keeper, nothing left behind. */
static int observe(const program *p, mgr **out)
{
    mgr_desc desc;
    describe(p, &desc);
    desc.observer = true;
    mgr_result result = mgr_open(out, &desc);
    if (result == MGR_OK) return EXIT_OK;
    int code = failed(p, *out, result);
    mgr_close(*out);
    *out = NULL;
    return code;
}

static bool same(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

/* Every millisecond since the boot, suspension included. */
static int64_t now_ms(void)
{
    struct timespec now;
#ifdef CLOCK_BOOTTIME
    clock_gettime(CLOCK_BOOTTIME, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void nap(long ms)
{
    struct timespec pause = { ms / 1000, (ms % 1000) * 1000000L };
    nanosleep(&pause, NULL);
}

static int refused_order(const void *a, const void *b) { return name_order(*(const char *const *)a, *(const char *const *)b); }

static int partition_order(const void *a, const void *b)
{
    return name_order(((const mgr_view_partition *)a)->name, ((const mgr_view_partition *)b)->name);
}

/* mgr_view_read in the order for people. The view is ours until it is freed. */
static mgr_result view_read(mgr *m, uint32_t timeout_ms, mgr_view **out)
{
    mgr_result result = mgr_view_read(m, timeout_ms, out);
    if (result != MGR_OK) return result;
    mgr_view *view = *out;
    if (view->partition_count) qsort((void *)(uintptr_t)view->partitions, view->partition_count, sizeof *view->partitions, partition_order);
    for (size_t i = 0; i < view->instance_count; i++) {
        const mgr_view_instance *v = &view->instances[i];
        if (v->refuse_count) qsort((void *)(uintptr_t)v->refuses, v->refuse_count, sizeof *v->refuses, refused_order);
    }
    return MGR_OK;
}

/* ---- tables ---- */

typedef enum colour { PLAIN, BOLD, GREEN, YELLOW, RED, DIM } colour;

static bool colours_wanted(void)
{
    const char *term = getenv("TERM"), *no = getenv("NO_COLOR");
    return isatty(STDOUT_FILENO) && !(no && *no) && term && strcmp(term, "dumb") != 0;
}

static void text_coloured(text *t, colour c, const char *s)
{
    static const char *const CODES[] = { "", "1", "32", "33", "31", "2" };
    if (c == PLAIN || !colours_wanted()) { text_add(t, s); return; }
    text_format(t, "\033[%sm%s\033[0m", CODES[c], s);
}

enum { COLUMNS_MAX = 8 };

typedef struct cell { char *text; colour colour; } cell;
typedef struct table { cell *cells; size_t count, cap, columns; } table;

/* The next cell, row by row. Control characters could play tricks on a terminal. */
static void cell_add(table *t, colour c, const char *format, ...) MGR__PRINTF(3, 4);
static void cell_add(table *t, colour c, const char *format, ...)
{
    if (t->count == t->cap) {
        t->cap = t->cap ? t->cap * 2 : 64;
        t->cells = (cell *)must(realloc(t->cells, t->cap * sizeof *t->cells));
    }
    text s = { NULL, 0, 0, false };
    va_list args;
    va_start(args, format);
    text_vformat(&s, format, args);
    va_end(args);
    for (size_t i = 0; i < s.len; i++) if ((unsigned char)s.at[i] < 0x20 || s.at[i] == 0x7f) s.at[i] = '?';
    t->cells[t->count].text = (char *)must(s.at);
    t->cells[t->count++].colour = c;
}

static void table_head(table *t, const char *const *heads, size_t count)
{
    memset(t, 0, sizeof *t);
    t->columns = count;
    for (size_t i = 0; i < count; i++) cell_add(t, BOLD, "%s", heads[i]);
}

/* Characters, not bytes, of UTF-8. */
static size_t width_of(const char *s)
{
    size_t width = 0;
    for (; *s; s++) width += ((unsigned char)*s & 0xc0) != 0x80;
    return width;
}

static void table_row(text *out, const table *t, size_t row, const size_t *widths)
{
    const cell *cells = t->cells + row * t->columns;
    size_t last = t->columns;
    while (last && !*cells[last - 1].text) last--;      /* no spaces at the ends of lines */
    for (size_t c = 0; c < last; c++) {
        text_coloured(out, cells[c].colour, cells[c].text);
        if (c + 1 < last) text_spaces(out, widths[c] - width_of(cells[c].text) + 2);
    }
    text_add(out, "\n");
}

static void table_end(text *out, table *t)
{
    size_t widths[COLUMNS_MAX] = { 0 };
    for (size_t i = 0; i < t->count; i++) {
        size_t width = width_of(t->cells[i].text);
        if (width > widths[i % t->columns]) widths[i % t->columns] = width;
    }
    for (size_t row = 0; row < t->count / t->columns; row++) table_row(out, t, row, widths);
    for (size_t i = 0; i < t->count; i++) free(t->cells[i].text);
    free(t->cells);
    memset(t, 0, sizeof *t);
}

/* ---- a view as a table ---- */

/* Gone, but the map still counts on its return: --rejoin-grace. */
static bool is_away(const mgr_view *view, const mgr_view_instance *i)
{
    for (size_t n = 0; !i->alive && n < view->partition_count; n++)
        if (same(view->partitions[n].assigned, i->id)) return true;
    return false;
}

static const mgr_view_instance *instance_in(const mgr_view *view, const char *id)
{
    for (size_t i = 0; id && i < view->instance_count; i++)
        if (strcmp(view->instances[i].id, id) == 0) return &view->instances[i];
    return NULL;
}

static void instance_notes(text *out, const mgr_view *view, const mgr_view_instance *i)
{
    if (is_away(view, i)) text_add(out, "away, its share is kept ");
    if (i->joining) text_add(out, "joining ");
    if (i->draining) text_add(out, "draining ");
    if (i->evicting) text_add(out, "evicting ");
    for (size_t r = 0; r < i->refuse_count; r++) text_format(out, r ? ",%s" : "refuses %s", i->refuses[r]);
    if (out->len && out->at[out->len - 1] == ' ') out->at[--out->len] = 0;
}

static void view_instances(text *out, const mgr_view *view)
{
    static const char *const HEADS[] = { "INSTANCE", "ALIVE", "WEIGHT", "OWNED", "LEASE", "NODE", "NOTES" };
    static const char *const NUMBERED[] = { "INSTANCE", "ALIVE", "SLOT", "OWNED", "LEASE", "NODE", "NOTES" };   /* all weigh the same */
    bool slots = view->placement == MGR_PLACEMENT_SLOTS;
    table t;
    table_head(&t, slots ? NUMBERED : HEADS, sizeof HEADS / sizeof *HEADS);
    for (size_t n = 0; n < view->instance_count; n++) {
        const mgr_view_instance *i = &view->instances[n];
        text notes = { NULL, 0, 0, false }, lease = { NULL, 0, 0, false };
        instance_notes(&notes, view, i);
        text_duration(&lease, i->lease_ms);
        cell_add(&t, PLAIN, "%s", i->id);
        cell_add(&t, i->alive ? GREEN : RED, "%s", i->alive ? "yes" : "no");
        cell_add(&t, PLAIN, "%u", (unsigned)(slots ? i->slot : i->weight));
        cell_add(&t, PLAIN, "%u", (unsigned)i->owned);
        cell_add(&t, PLAIN, "%s", text_of(&lease));
        cell_add(&t, PLAIN, "%s", i->node ? i->node : "");
        cell_add(&t, YELLOW, "%s", text_of(&notes));
        text_free(&notes);
        text_free(&lease);
    }
    table_end(out, &t);
}

typedef struct census { size_t alive, joining, taking; } census;

static census census_of(const mgr_view *view)
{
    census n = { 0, 0, 0 };
    for (size_t i = 0; i < view->instance_count; i++) {
        const mgr_view_instance *v = &view->instances[i];
        n.alive += v->alive;
        n.joining += v->alive && v->joining;
        n.taking += v->alive && !v->draining && !v->evicting;
    }
    return n;
}

/* What people see: "unplaceable" is a matter of who refuses or drains, not of who has yet to come. */
enum { SHOWN_WAITING = MGR_VIEW_UNPLACEABLE + 1, SHOWN_ENDED, SHOWN_COUNT };

static const struct { const char *word; colour colour; } SHOWN[SHOWN_COUNT] = {
    {"assigned", YELLOW}, {"assumed", GREEN}, {"unplaceable", RED}, {"waiting", YELLOW}, {"ended", DIM}
};

static int partition_state(const mgr_view *view, const mgr_view_partition *p)
{
    if (p->ended) return SHOWN_ENDED;
    bool waiting = p->state == MGR_VIEW_UNPLACEABLE;
    for (size_t i = 0; waiting && i < view->instance_count; i++) waiting = !view->instances[i].alive || view->instances[i].joining;
    return waiting ? SHOWN_WAITING : (int)p->state;
}

/* Why its program cannot even be started; NULL: it can, as far as anybody knows. */
static const char *not_started(const mgr_view_partition *p)
{
    static const char SIGN[] = "not started";
    if (strncmp(p->last_exit, SIGN, sizeof SIGN - 1) != 0) return NULL;
    const char *why = p->last_exit + sizeof SIGN - 1;
    return strncmp(why, ": ", 2) == 0 ? why + 2 : "the log of its instance has the reason";
}

static void partition_notes(text *out, const mgr_view_partition *p)
{
    if (p->mapped && !same(p->mapped, p->assigned)) text_format(out, "kept by the pause, then to %s", p->mapped);
    else if (p->lost) text_format(out, "lost by %s", p->last_owner);
    else if (p->owner && !same(p->owner, p->assigned)) text_format(out, "to be handed over");
    if (p->attempts > 1) text_format(out, "%sstarted %u times", out->len ? ", " : "", (unsigned)p->attempts);
    if (*p->last_exit) text_format(out, "%s%s%s", out->len ? ", " : "", not_started(p) ? "" : "last ", p->last_exit);
}

static void view_partitions(text *out, const mgr_view *view)
{
    static const char *const HEADS[] = { "PARTITION", "ASSIGNED", "OWNER", "STATE", "FENCE", "SINCE", "NOTES" };
    table t;
    table_head(&t, HEADS, sizeof HEADS / sizeof *HEADS);
    for (size_t n = 0; n < view->partition_count; n++) {
        const mgr_view_partition *p = &view->partitions[n];
        int shown = partition_state(view, p);
        text notes = { NULL, 0, 0, false };
        partition_notes(&notes, p);
        cell_add(&t, PLAIN, "%s", p->name);
        cell_add(&t, PLAIN, "%s", p->assigned ? p->assigned : "-");
        cell_add(&t, PLAIN, "%s", p->owner ? p->owner : "-");
        cell_add(&t, SHOWN[shown].colour, "%s", SHOWN[shown].word);
        if (p->fence) cell_add(&t, PLAIN, "%llu", (unsigned long long)p->fence);
        else cell_add(&t, PLAIN, "-");
        cell_add(&t, PLAIN, "%s", p->since && *p->since ? p->since : "-");
        cell_add(&t, YELLOW, "%s", text_of(&notes));
        text_free(&notes);
    }
    table_end(out, &t);
}

/* "paused by web1 since 2026-11-24T12:00:00Z: deploy", without an end of line. */
static void pause_text(text *out, const mgr_view *view)
{
    text_format(out, "paused by %s%s",
                view->breaker ? "the circuit breaker of " : "", *view->paused_by ? view->paused_by : "somebody unknown");
    if (*view->paused_since) text_format(out, " since %s", view->paused_since);
    if (*view->paused_reason) text_format(out, ": %s", view->paused_reason);
}

static void view_pause(text *out, const mgr_view *view)
{
    text line = { NULL, 0, 0, false };
    if (!view->paused) return;
    pause_text(&line, view);
    text_format(out, "%s: ", view->service_id);
    text_coloured(out, YELLOW, text_of(&line));
    text_format(out, "\n  planned moves are held, failures are taken over; %smanager resume -s %s ends it\n",
                view->breaker ? "it ends by itself once no instance comes or goes, or " : "", view->service_id);
    text_free(&line);
}

/* Wishes outlive their instances: who comes back is drained again. */
static void view_drained(text *out, const mgr_view *view)
{
    for (size_t i = 0; i < view->drained_count; i++)
        text_format(out, "%s is not there, and drains when it comes; manager undrain -s %s %s takes that back\n",
                    view->drained[i], view->service_id, view->drained[i]);
}

static void view_summary(text *out, const mgr_view *view)
{
    static const int ORDER[] = { SHOWN_ENDED, MGR_VIEW_ASSIGNED, MGR_VIEW_UNPLACEABLE, SHOWN_WAITING };
    size_t counts[SHOWN_COUNT] = { 0 };
    census n = census_of(view);
    for (size_t i = 0; i < view->partition_count; i++) counts[partition_state(view, &view->partitions[i])]++;
    text_format(out, "%s: %zu of ", view->service_id, n.alive);
    text_count(out, view->instance_count, "instance");
    text_add(out, " alive");
    if (n.joining) text_format(out, ", %zu joining", n.joining);
    text_add(out, "; ");
    text_count(out, view->partition_count, "partition");
    text_format(out, ": %zu assumed", counts[MGR_VIEW_ASSUMED]);
    for (size_t i = 0; i < sizeof ORDER / sizeof *ORDER; i++)
        if (counts[ORDER[i]]) text_format(out, ", %zu %s", counts[ORDER[i]], SHOWN[ORDER[i]].word);
    if (view->placement == MGR_PLACEMENT_SLOTS) text_add(out, "; placed by slots");
    text_add(out, "; ");
    text_coloured(out, view->converged ? GREEN : YELLOW, view->converged ? "converged" : "not converged");
    if (!n.alive) text_format(out, "; no instance is alive: start one with manager run -s %s -- COMMAND", view->service_id);
    text_add(out, "\n");
}

static void view_table(text *out, const mgr_view *view)
{
    view_instances(out, view);
    text_add(out, "\n");
    view_partitions(out, view);
    text_add(out, "\n");
    view_summary(out, view);
    view_drained(out, view);
    view_pause(out, view);
}

static const char *json_bool(bool b) { return b ? "true" : "false"; }

static void pause_json(text *out, const mgr_view *view)
{
    if (!view->paused) { text_add(out, "null"); return; }
    text_add(out, "{\"by\":");
    text_json(out, view->paused_by);
    text_add(out, ",\"since\":");
    text_json_or_null(out, *view->paused_since ? view->paused_since : NULL);
    text_add(out, ",\"reason\":");
    text_json(out, view->paused_reason);
    text_format(out, ",\"breaker\":%s}", json_bool(view->breaker));
}

static void view_json(text *out, const mgr_view *view)
{
    text_add(out, "{\"service\":");
    text_json(out, view->service_id);
    text_format(out, ",\"index\":%llu,\"converged\":%s,\"placement\":\"%s\",\"paused\":", (unsigned long long)view->index,
                json_bool(view->converged), placement_word(view->placement));
    pause_json(out, view);
    text_add(out, ",\"instances\":[");
    for (size_t n = 0; n < view->instance_count; n++) {
        const mgr_view_instance *i = &view->instances[n];
        text_add(out, n ? ",{\"id\":" : "{\"id\":");
        text_json(out, i->id);
        if (view->placement == MGR_PLACEMENT_SLOTS) text_format(out, ",\"slot\":%u", (unsigned)i->slot);
        text_format(out, ",\"alive\":%s,\"away\":%s,\"weight\":%u,\"joining\":%s,\"draining\":%s,\"evicting\":%s",
                    json_bool(i->alive), json_bool(is_away(view, i)), (unsigned)i->weight, json_bool(i->joining), json_bool(i->draining),
                    json_bool(i->evicting));
        text_format(out, ",\"joined\":%llu,\"owned\":%u,\"lease_ms\":%u,\"delay_ms\":%u,\"node\":",
                    (unsigned long long)i->joined, (unsigned)i->owned, (unsigned)i->lease_ms, (unsigned)i->delay_ms);
        text_json(out, i->node ? i->node : "");
        text_add(out, ",\"isolate\":");
        text_json(out, i->isolate ? i->isolate : "");
        text_add(out, ",\"refuses\":[");
        for (size_t r = 0; r < i->refuse_count; r++) {
            if (r) text_add(out, ",");
            text_json(out, i->refuses[r]);
        }
        text_add(out, "]}");
    }
    text_add(out, "],\"partitions\":[");
    for (size_t n = 0; n < view->partition_count; n++) {
        const mgr_view_partition *p = &view->partitions[n];
        text_add(out, n ? ",{\"name\":" : "{\"name\":");
        text_json(out, p->name);
        text_add(out, ",\"assigned\":");
        text_json_or_null(out, p->assigned);
        text_add(out, ",\"mapped\":");
        text_json_or_null(out, p->mapped);
        text_add(out, ",\"owner\":");
        text_json_or_null(out, p->owner);
        text_format(out, ",\"state\":\"%s\",\"fence\":%llu,\"since\":", SHOWN[partition_state(view, p)].word, (unsigned long long)p->fence);
        text_json_or_null(out, p->since);
        text_format(out, ",\"attempts\":%u,\"last_exit\":", (unsigned)p->attempts);
        text_json(out, p->last_exit);
        text_format(out, ",\"ended\":%s,\"lost\":%s,\"last_owner\":", json_bool(p->ended), json_bool(p->lost));
        text_json(out, p->last_owner ? p->last_owner : "");
        text_add(out, "}");
    }
    text_add(out, "],\"drained\":[");
    for (size_t n = 0; n < view->drained_count; n++) {
        text_add(out, n ? "," : "");
        text_json(out, view->drained[n]);
    }
    text_add(out, "]}\n");
}

/* To stdout, now: a pipe or a file must not see half a table at the next kill. */
static void print_text(const text *t)
{
    fputs(text_of(t), stdout);
    fflush(stdout);
}

/* ============================================================================
 * run
 * ========================================================================== */

/* A pipe or a terminal, opened anew: stderr itself is shared with the workers and our
 * caller, who must not find it non-blocking. -1: not to be had, or not needed. A file's
 * end would be another one for us than for the workers. */
static int log_open(void)
{
    struct stat st;
    if (fstat(STDERR_FILENO, &st) < 0 || !(S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode))) return -1;
    return open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

/* Never waiting: a log that nobody reads must not cost the lease. */
static bool log_put(program *p, const text *line)
{
    struct pollfd ready = { STDERR_FILENO, POLLOUT, 0 };
    ssize_t put = send(STDERR_FILENO, text_of(line), line->len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && errno == ENOTSOCK) {
        if (p->log_fd < 0 && (poll(&ready, 1, 0) != 1 || !(ready.revents & POLLOUT))) return false;
        put = write(p->log_fd < 0 ? STDERR_FILENO : p->log_fd, text_of(line), line->len);
    }
    if (put > 0) p->log_cut = (size_t)put < line->len;
    return put == (ssize_t)line->len;
}

static void log_write(program *p, text *line)
{
    if (line->len > LINE_BYTES_MAX) { line->len = LINE_BYTES_MAX; line->at[line->len - 1] = '\n'; }
    if (p->dropped) {
        text lost = { NULL, 0, 0, false };
        text_add(&lost, p->log_cut ? "\nmanager: " : "manager: ");
        text_count(&lost, p->dropped, "log line");
        text_format(&lost, " dropped: stderr is not read fast enough\n");
        if (log_put(p, &lost)) p->dropped = 0;
        text_free(&lost);
    }
    if (p->dropped || !log_put(p, line)) p->dropped++;
}

static bool word_character(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* Whether the text has this word, not only as a part of another. */
static bool mentions(const char *s, const char *word)
{
    size_t len = strlen(word);
    for (const char *at = s; (at = strstr(at, word)) != NULL; at++)
        if ((at == s || !word_character(at[-1])) && !word_character(at[len])) return true;
    return false;
}

/* What the text does not say by itself. */
static void log_rest(text *line, const char *said, const char *noun, const char *value)
{
    if (*value && !mentions(said, value)) text_format(line, " (%s %s)", noun, value);
}

static void log_json_field(text *line, const char *name, const char *value)
{
    if (!value || !*value) return;
    text_format(line, ",\"%s\":", name);
    text_json(line, value);
}

static const char *self_of(const program *p) { return p->opt.instance ? p->opt.instance : "-"; }

static void event_text(text *line, const program *p, const mgr_event *e)
{
    const char *said = e->text ? e->text : "";
    char fence[24] = "";
    if (e->fence) snprintf(fence, sizeof fence, "%llu", (unsigned long long)e->fence);
    text_now(line);
    text_format(line, " %s %s: %s", self_of(p), mgr_event_word(e->kind), said);
    log_rest(line, said, "partition", e->partition ? e->partition : "");
    log_rest(line, said, "fence", fence);
    text_add(line, "\n");
}

static void event_json(text *line, const program *p, const mgr_event *e)
{
    text_add(line, "{\"time\":\"");
    text_now(line);
    text_format(line, "\",\"event\":\"%s\"", mgr_event_word(e->kind));
    log_json_field(line, "service", p->opt.service);
    log_json_field(line, "self", p->opt.instance);
    log_json_field(line, "partition", e->partition);
    log_json_field(line, "instance", e->instance);
    log_json_field(line, "name", e->name);
    if (e->pid) text_format(line, ",\"pid\":%ld", (long)e->pid);
    if (e->kind == MGR_EVENT_EXITED || e->kind == MGR_EVENT_CHECK) text_format(line, ",\"status\":%d", e->status);
    if (e->fence) text_format(line, ",\"fence\":%llu", (unsigned long long)e->fence);
    if (e->result != MGR_OK) text_format(line, ",\"result\":%d", (int)e->result);
    log_json_field(line, "text", e->text);
    text_add(line, "}\n");
}

static void on_event(mgr *m, const mgr_event *event, void *user)
{
    program *p = (program *)user;
    text line = { NULL, 0, 0, false };
    (void)m;
    if (event->kind == MGR_EVENT_IDENTITY || event->kind == MGR_EVENT_EVICTED || event->kind == MGR_EVENT_ERROR)
        snprintf(p->last_words, sizeof p->last_words, "%s", event->text ? event->text : "");
    if (p->opt.log_json) event_json(&line, p, event);
    else event_text(&line, p, event);
    if (line.at) log_write(p, &line);
    text_free(&line);
}

/* What goes wrong in this program, in the form of an event. */
static void log_error(program *p, const char *partition, mgr_result result, const char *message)
{
    mgr_event event;
    memset(&event, 0, sizeof event);
    event.kind = MGR_EVENT_ERROR;
    event.partition = partition;
    event.result = result;
    event.text = message;
    on_event(NULL, &event, p);
}

/* An argument of COMMAND with the values in place, in the order of REPLACED. */
static char *filled_in(const char *arg, const char *const *values)
{
    text out = { NULL, 0, 0, false };
    while (*arg) {
        size_t i = 0;
        while (i < REPLACED_COUNT && strncmp(arg, REPLACED[i].braces, strlen(REPLACED[i].braces)) != 0) i++;
        if (i < REPLACED_COUNT) { text_add(&out, values[i]); arg += strlen(REPLACED[i].braces); }
        else text_bytes(&out, arg++, 1);
    }
    text_add(&out, "");                         /* an empty argument is one, too */
    if (out.failed) text_free(&out);
    return out.at;
}

static void argv_free(char **argv)
{
    for (size_t i = 0; argv && argv[i]; i++) free(argv[i]);
    free(argv);
}

/* COMMAND for one partition; NULL when out of memory. The program itself is
 * never replaced: a partition's name comes from the KV store. */
static char **command_for(const program *p, const char *partition, uint64_t fence)
{
    char number[24];
    snprintf(number, sizeof number, "%llu", (unsigned long long)fence);
    const char *values[REPLACED_COUNT] = { partition, p->opt.instance, p->opt.service, number };
    const char *shell[] = { "/bin/sh", "-c", p->words[0] };
    size_t count = p->opt.shell ? 3 : p->word_count;
    char **argv = (char **)calloc(count + 1, sizeof *argv);
    if (!argv) return NULL;
    for (size_t i = 0; i < count; i++) {
        bool as_is = p->opt.shell || i == 0;
        argv[i] = as_is ? strdup(p->opt.shell ? shell[i] : p->words[i])
                        : filled_in(p->words[i], values);
        if (!argv[i]) { argv_free(argv); return NULL; }
    }
    return argv;
}

static mgr_result start_checks(const program *p, mgr *m, const char *partition)
{
    const char *script[] = { "/bin/sh", "-c", p->opt.check_script, NULL };
    mgr_result result = MGR_OK;
    mgr_check check;
    memset(&check, 0, sizeof check);
    check.policy = MGR_CHECK_REFUSE;
    if (p->opt.check_script) {
        check.argv = script;
        check.interval_ms = p->opt.check_interval_ms;
        result = mgr_check_script(m, partition, &check);
    }
    if (result == MGR_OK && p->opt.check_ttl_ms) {
        check.argv = NULL;
        check.interval_ms = 0;
        check.ttl_ms = p->opt.check_ttl_ms;
        check.by_worker = true;
        result = mgr_check_ttl(m, partition, &check);
    }
    return result;
}

static mgr_result start_command(const program *p, mgr *m, const char *partition, uint64_t fence)
{
    char **argv = command_for(p, partition, fence);
    if (!argv) return MGR_NO_MEMORY;
    mgr_process process;
    memset(&process, 0, sizeof process);
    process.argv = (const char *const *)argv;
    process.stop_signal = p->opt.stop_signal;
    process.directory = p->opt.directory;
    mgr_result result = p->opt.once ? mgr_exec(m, partition, NULL, &process) : mgr_daemonize(m, partition, NULL, &process);
    argv_free(argv);
    return result;
}

/* Checks first: COMMAND finds the id of its check in its environment. */
static mgr_answer on_acquire(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    program *p = (program *)user;
    mgr_result result = start_checks(p, m, partition);
    if (result == MGR_OK) result = start_command(p, m, partition, mgr_grant_fence(grant));
    if (result == MGR_OK) return MGR_DONE;
    log_error(p, partition, result, result == MGR_NO_MEMORY ? mgr_result_text(result) : mgr_error_text(m));
    return MGR_UNFIT;
}

/* Exec the keeper from the very file this process runs: a path could name
 * another version by now. Where there is no /proc, the library forks. The name
 * keeps `pkill manager` from taking it along. */
static char **keeper_command(program *p)
{
    if (access("/proc/self/exe", X_OK) != 0) return NULL;
    snprintf(p->keeper_name, sizeof p->keeper_name, "mgr-keeper");
    p->keeper_argv[0] = p->keeper_name;
    p->keeper_argv[1] = NULL;
    return p->keeper_argv;
}

static void describe_run(program *p, mgr_desc *desc)
{
    const options *o = &p->opt;
    describe(p, desc);
    desc->instance_id = o->instance;
    desc->weight = o->weight;
    desc->moves_max = o->moves_max;
    desc->breaker_percent = o->breaker_percent;
    desc->tags = list_names(&o->tags);
    desc->tag_count = o->tags.count;
    desc->partitions = o->partitions.count ? list_names(&o->partitions) : NULL;
    desc->partition_count = o->partitions.count;
    desc->placement = o->placement;
    desc->lease_ms = o->lease_ms;
    desc->delay_ms = o->delay_ms;
    desc->session_ttl_ms = o->ttl_ms;
    desc->stop_grace_ms = o->stop_grace_ms;
    desc->rejoin_grace_ms = o->rejoin_grace_ms;
    desc->settle_ms = o->settle_ms;
    desc->start_timeout_ms = o->start_timeout_ms;
    desc->isolate = o->isolate;
    desc->run_dir = o->run_dir;
    desc->keeper_argv = keeper_command(p);
    desc->handle_signals = true;
    desc->on_acquire = on_acquire;
    desc->on_event = on_event;
    desc->user = p;
}

static int cmd_run(program *p)
{
    char host[256] = "";
    if (!p->opt.instance && gethostname(host, sizeof host - 1) == 0 && *host) p->opt.instance = host;
    if (!p->opt.instance) {
        say(p, "this host has no name to use as instance id: add -i INSTANCE");
        return EXIT_CONFIG;
    }
    signal(SIGPIPE, SIG_IGN);                   /* a reader of the log that goes away */
    p->log_fd = log_open();
#ifdef PR_SET_CHILD_SUBREAPER
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);  /* guard and keeper killed together: their orphans come to us */
#endif
    mgr *m = NULL;
    mgr_desc desc;
    describe_run(p, &desc);
    mgr_result result = mgr_open(&m, &desc);
    int code = EXIT_OK;
    if (result != MGR_OK) code = failed(p, m, result);
    else if ((result = mgr_run(m)) != MGR_OK) {
        code = exit_code_of(result);
        say(p, "%s of service %s has ended: %s", p->opt.instance, p->opt.service,
            *p->last_words ? p->last_words : mgr_result_text(result));
    }
    mgr_close(m);
    return code;
}

/* ============================================================================
 * dev: an agent in memory and some instances, for one terminal
 * ========================================================================== */

static volatile sig_atomic_t dev_signals;       /* how often we were asked to end */

static void dev_signalled(int number)
{
    (void)number;
    dev_signals = dev_signals + 1;
}

typedef struct dev {
    pid_t  agent;
    int    agent_stop;                          /* closing it ends the agent, our own death too */
    char   address[32];
    pid_t  instances[DEV_INSTANCES_MAX];        /* 0: has ended */
    size_t count;
    int    code;                                /* of the first that failed */
} dev;

static void dev_catch(void (*handler)(int))
{
    static const int SIGNALS[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) sigaction(SIGNALS[i], &action, NULL);
}

/* Groups of their own: Ctrl-C is for us, who pass it on once; a second signal
 * would mean "at once". Nothing outlives us, if we are killed. */
static pid_t dev_fork(void)
{
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    (void)parent;
    if (pid == 0) {
        setpgid(0, 0);
        dev_catch(SIG_DFL);
#ifdef PR_SET_PDEATHSIG
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (getppid() != parent) _exit(EXIT_FAILED);    /* it died before we had asked */
#endif
    }
    return pid;
}

static bool dev_agent_start(program *p, dev *d)
{
    int stop[2], ready[2];
    if (pipe(stop) != 0 || pipe(ready) != 0) { say(p, "no pipe to be had: %s", strerror(errno)); return false; }
    d->agent = dev_fork();
    if (d->agent == 0) {
        close(stop[1]);
        close(ready[0]);
        _exit(dc_serve("127.0.0.1:0", stop[0], ready[1]));
    }
    close(stop[0]);
    close(ready[1]);
    fcntl(stop[1], F_SETFD, FD_CLOEXEC);
    d->agent_stop = stop[1];
    char port[8] = "";
    size_t len = 0;
    ssize_t got;
    while (len < sizeof port - 1 && !memchr(port, '\n', len) && (got = read(ready[0], port + len, sizeof port - 1 - len)) > 0)
        len += (size_t)got;
    close(ready[0]);
    port[strspn(port, "0123456789")] = 0;
    if (!*port) { say(p, "the built-in agent did not start: is 127.0.0.1 up?"); return false; }
    snprintf(d->address, sizeof d->address, "127.0.0.1:%s", port);
    return true;
}

static bool dev_instance_start(program *p, dev *d)
{
    char id[16];
    snprintf(id, sizeof id, "dev-%zu", d->count + 1);
    pid_t pid = dev_fork();
    if (pid < 0) { say(p, "cannot start instance %s: %s", id, strerror(errno)); return false; }
    if (pid > 0) { d->instances[d->count++] = pid; return true; }
    if (d->agent) close(d->agent_stop);
    p->opt.instance = id;
    _exit(cmd_run(p));
}

static size_t dev_reap(program *p, dev *d)
{
    size_t left = 0;
    for (size_t i = 0; i < d->count; i++) {
        int status = 0;
        if (!d->instances[i] || waitpid(d->instances[i], &status, WNOHANG) == 0) { left += d->instances[i] != 0; continue; }
        d->instances[i] = 0;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
        if (WIFEXITED(status)) say(p, "instance dev-%zu ended with exit code %d", i + 1, WEXITSTATUS(status));
        else say(p, "instance dev-%zu was killed by signal %d", i + 1, WTERMSIG(status));
        if (!d->code) d->code = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILED;
    }
    return left;
}

static bool has_line(const char *s, const char *line, size_t len)
{
    for (const char *at = s; *at; at += strcspn(at, "\n") + 1)
        if (strcspn(at, "\n") == len && memcmp(at, line, len) == 0) return true;
    return false;
}

/* The lines of `now` that `before` does not have. */
static void dev_changes(text *out, const char *now, const char *before)
{
    for (const char *line = now; *line; line += strcspn(line, "\n") + 1) {
        size_t len = strcspn(line, "\n");
        if (has_line(before, line, len)) continue;
        text_bytes(out, line, len);
        text_add(out, "\n");
    }
}

/* Nothing before there is work; then the whole, then what has changed. */
static void dev_show(mgr *m, text *shown, uint64_t *index)
{
    mgr_view *view = NULL;
    bool worth = shown->len != 0;
    if (view_read(m, 1000, &view) != MGR_OK) { nap(100); return; }
    text now = { NULL, 0, 0, false }, changes = { NULL, 0, 0, false };
    for (size_t i = 0; i < view->partition_count; i++) worth = worth || view->partitions[i].state == MGR_VIEW_ASSUMED;
    if (worth) view_table(&now, view);
    *index = view->index;
    mgr_view_free(m, view);
    dev_changes(&changes, text_of(&now), text_of(shown));
    if (changes.len) {
        fputs("\n", stdout);
        print_text(&changes);
    }
    text_free(&changes);
    text_free(shown);
    *shown = now;
}

static void dev_watch(program *p, dev *d, mgr *m)
{
    text shown = { NULL, 0, 0, false };
    uint64_t index = 0;
    sig_atomic_t passed_on = 0;
    while (dev_reap(p, d)) {
        for (; passed_on < dev_signals; passed_on++)
            for (size_t i = 0; i < d->count; i++) if (d->instances[i]) kill(d->instances[i], SIGTERM);
        if (passed_on) { nap(20); continue; }
        if (index) mgr_view_wait(m, index, 200);
        dev_show(m, &shown, &index);
    }
    text_free(&shown);
}

/* What outlived an instance comes to us, who are a subreaper: wait for it. */
static bool dev_nothing_left(void)
{
    int64_t until = now_ms() + DEV_LEFTOVER_MS;
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0 && errno == ECHILD) return true;
        if (now_ms() > until) return false;
        if (pid == 0) nap(10);
    }
}

static int cmd_dev(program *p)
{
    dev d;
    mgr *m = NULL;
    memset(&d, 0, sizeof d);
    if (!p->opt.consul && !p->opt.partitions.count) {
        say(p, "no partitions given, and a new agent has none: add -p LIST, as in -p 0..15");
        return EXIT_USAGE;
    }
    if (!p->opt.service) p->opt.service = "dev";
    if (!p->opt.dev_count) p->opt.dev_count = 3;
#ifdef PR_SET_CHILD_SUBREAPER
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
#endif
    dev_catch(dev_signalled);
    if (!p->opt.consul) {
        if (!dev_agent_start(p, &d)) return EXIT_FAILED;
        p->opt.consul = d.address;
    }
    printf("service %s, %u instance%s, agent at %s; in another terminal: manager status -s %s --consul %s\n",
           p->opt.service, (unsigned)p->opt.dev_count, p->opt.dev_count == 1 ? "" : "s", p->opt.consul, p->opt.service, p->opt.consul);
    while (d.count < p->opt.dev_count && dev_instance_start(p, &d)) {}
    if (d.count < p->opt.dev_count) { d.code = EXIT_FAILED; dev_signals = 1; }
    int code = observe(p, &m);
    if (code) dev_signals = 1;
    dev_watch(p, &d, m);
    mgr_close(m);
    if (d.agent) close(d.agent_stop);
    if (!dev_nothing_left()) { say(p, "processes of an instance are still there: see ps --ppid %ld", (long)getpid()); return EXIT_FAILED; }
    return code ? code : d.code;
}

/* ============================================================================
 * status, wait, why
 * ========================================================================== */

static int status_once(program *p, mgr *m, text *shown, uint64_t *index)
{
    mgr_view *view = NULL;
    mgr_result result = view_read(m, READ_TIMEOUT_MS, &view);
    if (result != MGR_OK) return failed(p, m, result);
    text now = { NULL, 0, 0, false };
    if (p->opt.json) view_json(&now, view);
    else view_table(&now, view);
    int code = view->converged ? EXIT_OK : EXIT_NOT_CONVERGED;
    *index = view->index;
    mgr_view_free(m, view);
    if (strcmp(text_of(&now), text_of(shown)) != 0) {
        if (p->opt.watch && !p->opt.json) fputs(colours_wanted() ? "\033[H\033[2J" : shown->len ? "\n" : "", stdout);
        print_text(&now);
    }
    text_free(shown);
    *shown = now;
    return code;
}

static int cmd_status(program *p)
{
    mgr *m = NULL;
    text shown = { NULL, 0, 0, false };
    uint64_t index = 0;
    int code = observe(p, &m);
    if (code) return code;
    code = status_once(p, m, &shown, &index);
    while (p->opt.watch && !ferror(stdout) && (code == EXIT_OK || code == EXIT_NOT_CONVERGED || code == EXIT_NO_CLUSTER)) {
        if (code == EXIT_NO_CLUSTER) nap(1000);
        else mgr_view_wait(m, index, 60000);
        code = status_once(p, m, &shown, &index);
    }
    text_free(&shown);
    mgr_close(m);
    return code;
}

/* Which partitions are not where they should be: the first, and how many more. */
static void say_unconverged(const program *p, const mgr_view *view, const char *after)
{
    const mgr_view_partition *first = NULL;
    size_t count = 0;
    for (size_t i = 0; i < view->partition_count; i++) {
        const mgr_view_partition *q = &view->partitions[i];
        if (q->assigned && same(q->owner, q->assigned)) continue;
        if (!first) first = q;
        count++;
    }
    if (!census_of(view).alive)
        say(p, "service %s is not converged after %s: no instance is alive; start one with manager run -s %s -- COMMAND",
            p->opt.service, after, p->opt.service);
    else if (view->converged)
        say(p, "service %s has %zu of %u instances live after %s; start more, or see manager status -s %s",
            p->opt.service, census_of(view).alive, (unsigned)p->opt.live, after, p->opt.service);
    else if (!first) say(p, "service %s is not converged after %s; see manager status -s %s", p->opt.service, after, p->opt.service);
    else
        say(p, "service %s is not converged after %s: %zu of %zu partition%s not held by the instance assigned to; "
            "see manager why -s %s %s",
            p->opt.service, after, count, view->partition_count, view->partition_count == 1 ? "" : "s", p->opt.service, first->name);
}

static void print_converged(const mgr_view *view)
{
    text out = { NULL, 0, 0, false };
    text_format(&out, "%s: converged: ", view->service_id);
    text_count(&out, view->partition_count, "partition");
    text_add(&out, " on ");
    text_count(&out, census_of(view).alive, "instance");
    text_add(&out, "\n");
    print_text(&out);
    text_free(&out);
}

static int wait_until(program *p, mgr *m, int64_t deadline, const char *after)
{
    for (;;) {
        int64_t left = deadline - now_ms();
        mgr_view *view = NULL;
        mgr_result result = view_read(m, left < 1000 ? 1000 : (uint32_t)left, &view);
        bool pointless = result == MGR_DENIED || result == MGR_INVALID || result == MGR_NO_MEMORY;
        bool over = pointless || now_ms() >= deadline;
        bool converged = result == MGR_OK && view->converged && census_of(view).alive >= p->opt.live;
        uint64_t index = result == MGR_OK ? view->index : 0;
        if (converged) print_converged(view);
        else if (over && result == MGR_OK) say_unconverged(p, view, after);
        else if (over) failed(p, m, result);
        if (view) mgr_view_free(m, view);
        if (converged) return EXIT_OK;
        if (over) return result == MGR_OK || result == MGR_NOT_FOUND ? EXIT_NOT_CONVERGED : exit_code_of(result);
        left = deadline - now_ms();
        if (result == MGR_OK && left > 0) mgr_view_wait(m, index, (uint32_t)left);
        else nap(200);
    }
}

static int cmd_wait(program *p)
{
    mgr *m = NULL;
    uint32_t timeout_ms = p->opt.timeout_ms == 0 ? WAIT_TIMEOUT_MS : p->opt.timeout_ms == MGR_NONE ? 0 : p->opt.timeout_ms;
    int code = observe(p, &m);
    if (code) return code;
    text after = { NULL, 0, 0, false };
    text_duration(&after, timeout_ms);
    code = wait_until(p, m, now_ms() + timeout_ms, text_of(&after));
    text_free(&after);
    mgr_close(m);
    return code;
}

static bool refuses(const mgr_view_instance *i, const char *partition)
{
    for (size_t r = 0; r < i->refuse_count; r++) if (strcmp(i->refuses[r], partition) == 0) return true;
    return false;
}

/* Why an instance may not have the partition; NULL: it may. */
static const char *bar_of(const mgr_view_instance *i, const char *partition)
{
    if (!i->alive) return "is not alive";
    if (i->evicting) return "is being evicted";
    if (i->joining) return "is still joining";
    if (i->draining) return "is draining (manager undrain takes it back)";
    if (refuses(i, partition)) return "refuses it: its log says why";
    return NULL;
}

/* Why it is free, or goes from one to the other. */
static void why_on_its_way(text *out, const mgr_view *view, const mgr_view_partition *q)
{
    const mgr_view_instance *taker = instance_in(view, q->assigned), *loser = instance_in(view, q->last_owner);
    if (!q->owner && taker && !taker->alive) {
        text_format(out, "%s is away, and its share is kept for its return (--rejoin-grace): "
                    "if it is not back in time, another takes it over; manager drain -s %s %s gives it away now",
                    taker->id, view->service_id, taker->id);
        if (q->lost) text_add(out, ". Nobody has proven that its work is dead, so whoever takes it waits the delay");
        if (q->lost && *q->lost_why) text_format(out, " (its host looked for a proof: %s)", q->lost_why);
    } else if (q->owner) {
        text_format(out, "the map moved it from %s to %s: %s stops its work and releases it, then %s takes it over",
                    q->owner, q->assigned, q->owner, q->assigned);
    } else if (q->lost) {
        uint32_t delay_ms = taker ? taker->delay_ms : 0;
        if (loser && loser->delay_ms > delay_ms) delay_ms = loser->delay_ms;
        text_format(out, "%s is gone, and nobody has proven that its work is dead: %s waits ", q->last_owner, q->assigned);
        if (delay_ms) text_duration(out, delay_ms);
        else text_add(out, "the delay");
        text_add(out, " from when it saw the loss, so that the two never overlap");
        if (*q->lost_why) text_format(out, " (its host looked for a proof: %s)", q->lost_why);
    } else {
        text_format(out, "it is free, and %s is about to take it: if that lasts, see the log of %s", q->assigned, q->assigned);
    }
}

static void why_reason(text *out, const mgr_view *view, const mgr_view_partition *q)
{
    const char *unable = not_started(q), *where = q->owner ? q->owner : q->last_owner;
    census n = census_of(view);
    if (!n.alive) {
        text_format(out, "no instance is alive: start one with manager run -s %s -- COMMAND", view->service_id);
    } else if (q->ended) {
        text_format(out, "its command was to run once (--once), and has ended%s%s", *q->last_exit ? ": " : "", q->last_exit);
    } else if (unable) {
        text_format(out, "its program cannot be started on %s: %s; look at COMMAND, the PATH and the --directory "
                    "that manager run was given there, and at its log", where, unable);
    } else if (same(q->owner, q->assigned) && q->owner && !same(q->assigned, q->mapped)) {
        text_format(out, "%s keeps it while the service is paused; then the map moves it to %s; ",
                    q->owner, q->mapped ? q->mapped : "nobody");
        pause_text(out, view);
    } else if (same(q->owner, q->assigned) && q->owner) {
        text_format(out, "the map gives it to %s, which holds its lock and works on it", q->assigned);
        if (q->attempts > 1)
            text_format(out, "; its process has ended and was started again, %u time%s so far: its stderr says why",
                        (unsigned)q->attempts - 1, q->attempts == 2 ? "" : "s");
    } else if (q->assigned) {
        why_on_its_way(out, view, q);
    }
    if (n.alive && !q->assigned) text_add(out, unable || q->ended ? "; no instance may take it:" : "no instance may take it:");
    text_add(out, "\n");
}

static void why_text(text *out, const mgr_view *view, const mgr_view_partition *q)
{
    int shown = partition_state(view, q);
    text_format(out, "partition %s of %s: ", q->name, view->service_id);
    text_coloured(out, SHOWN[shown].colour, SHOWN[shown].word);
    text_format(out, "\n  assigned to  %s\n  owner        %s\n", q->assigned ? q->assigned : "nobody", q->owner ? q->owner : "nobody");
    if (q->owner) text_format(out, "  fence        %llu, since %s\n", (unsigned long long)q->fence, q->since);
    else if (q->last_owner && *q->last_owner) text_format(out, "  last owner   %s\n", q->last_owner);
    if (q->attempts) text_format(out, "  started      %u time%s%s%s\n", (unsigned)q->attempts, q->attempts == 1 ? "" : "s",
                                 *q->last_exit ? ", last end: " : "", q->last_exit);
    text_add(out, "  why          ");
    why_reason(out, view, q);
    for (size_t i = 0; i < view->instance_count; i++) {
        const char *bar = bar_of(&view->instances[i], q->name);
        if (bar) text_format(out, "               %s %s\n", view->instances[i].id, bar);
    }
}

static int cmd_why(program *p)
{
    mgr *m = NULL;
    mgr_view *view = NULL;
    int code = observe(p, &m);
    if (code) return code;
    mgr_result result = view_read(m, READ_TIMEOUT_MS, &view);
    const mgr_view_partition *found = NULL;
    if (result != MGR_OK) code = failed(p, m, result);
    for (size_t i = 0; view && i < view->partition_count; i++)
        if (strcmp(view->partitions[i].name, p->words[0]) == 0) found = &view->partitions[i];
    text out = { NULL, 0, 0, false };
    if (found) why_text(&out, view, found);
    else if (view) {
        say(p, "service %s has no partition \"%s\" among its %zu; see manager status -s %s", p->opt.service, p->words[0],
            view->partition_count, p->opt.service);
        code = EXIT_FAILED;
    }
    print_text(&out);
    text_free(&out);
    if (view) mgr_view_free(m, view);
    mgr_close(m);
    return code;
}

/* ============================================================================
 * partitions, drain, undrain, pause, resume, evict
 * ========================================================================== */

static int admin_done(program *p, mgr *m, mgr_result result, const char *done)
{
    int code = EXIT_OK;
    if (result == MGR_OK) printf("%s\n", done);
    else code = failed(p, m, result);
    mgr_close(m);
    return code;
}

static mgr_result partitions_set(program *p, mgr *m, const list *names)
{
    const char *const *set = names->count ? list_names(names) : NULL;
    return p->opt.placement ? mgr_set_placement(m, p->opt.placement, set, names->count) : mgr_set_partitions(m, set, names->count);
}

/* No set stands: the first one makes the service, also under a name that was mistyped. */
static bool is_new(mgr *m)
{
    mgr_view *view = NULL;
    mgr_result result = view_read(m, READ_TIMEOUT_MS, &view);
    if (view) mgr_view_free(m, view);
    return result == MGR_NOT_FOUND;
}

static int cmd_partitions(program *p)
{
    mgr *m = NULL;
    list names = { NULL, 0, 0 };
    text done = { NULL, 0, 0, false };
    const char *fault = p->word_count ? set_list(&p->opt, &names, p->words[0]) : NULL;
    int code = fault ? EXIT_USAGE : observe(p, &m);
    if (fault) say(p, "LIST \"%s\" %s", p->words[0], fault);
    text_add(&done, p->opt.service);
    if (names.count) {
        text_add(&done, " has ");
        text_count(&done, names.count, "partition");
        text_add(&done, " now");
    }
    if (p->opt.placement) text_format(&done, "%s is placed by %s now", names.count ? ", and" : "", placement_word(p->opt.placement));
    if (!code && is_new(m))
        text_format(&done, "; it is a new service: no instance was ever there, start one with manager run -s %s -- COMMAND",
                    p->opt.service);
    if (!code) code = admin_done(p, m, partitions_set(p, m, &names), text_of(&done));
    text_free(&done);
    list_free(&names);
    return code;
}

/* Whether an instance other than this one is there to take work. True where it cannot be told. */
static bool others_take(mgr *m, const char *id)
{
    mgr_view *view = NULL;
    if (view_read(m, READ_TIMEOUT_MS, &view) != MGR_OK) return true;
    const mgr_view_instance *own = instance_in(view, id);
    bool itself = own && own->alive && !own->draining && !own->evicting, others = census_of(view).taking > (itself ? 1u : 0u);
    mgr_view_free(m, view);
    return others;
}

static int drain(program *p, bool on)
{
    mgr *m = NULL;
    text done = { NULL, 0, 0, false };
    int code = observe(p, &m);
    if (code) return code;
    bool others = !on || others_take(m, p->words[0]);
    text_format(&done, "%s of %s ", p->words[0], p->opt.service);
    if (!on) text_format(&done, "takes work again; manager wait -s %s says when it has it", p->opt.service);
    else if (others) text_format(&done, "hands everything over; manager wait -s %s says when that is done", p->opt.service);
    else
        text_format(&done, "drains, but nothing can take over: its work stops, and manager wait -s %s will not succeed "
                           "until another instance joins", p->opt.service);
    code = admin_done(p, m, mgr_wish_drain(m, p->words[0], on), text_of(&done));
    text_free(&done);
    return code;
}

static int cmd_drain(program *p) { return drain(p, true); }
static int cmd_undrain(program *p) { return drain(p, false); }

static int pause_or_resume(program *p, bool on)
{
    mgr *m = NULL;
    mgr_view *view = NULL;
    text done = { NULL, 0, 0, false };
    int code = observe(p, &m);
    if (code) return code;
    mgr_result result = view_read(m, READ_TIMEOUT_MS, &view);
    if (result != MGR_OK) return admin_done(p, m, result, "");
    bool already = on ? view->paused && !view->breaker : !view->paused;
    bool news = on && already && p->opt.reason && p->opt.reason[0] && strcmp(p->opt.reason, view->paused_reason) != 0;
    mgr_view_free(m, view);
    const char *service = p->opt.service;
    if (news) text_format(&done, "%s is paused already: the reason was replaced; see manager status -s %s", service, service);
    else if (already && on) text_format(&done, "%s is paused already: see manager status -s %s", service, service);
    else if (already) text_format(&done, "%s is not paused; see manager status -s %s", service, service);
    else if (on)
        text_format(&done, "%s is paused: only failures and explicit commands move anything; manager resume -s %s ends it",
                    service, service);
    else text_format(&done, "%s goes on; manager wait -s %s says when every partition is where the map wants it", service, service);
    code = admin_done(p, m, already && !news ? MGR_OK : mgr_pause(m, on, p->opt.reason), text_of(&done));
    text_free(&done);
    return code;
}

static int cmd_pause(program *p) { return pause_or_resume(p, true); }
static int cmd_resume(program *p) { return pause_or_resume(p, false); }

static bool confirmed(const program *p)
{
    char answer[16] = "";
    if (p->opt.yes || !isatty(STDIN_FILENO)) return true;
    printf("make instance %s of service %s leave? Its program ends, its work moves to the others. [y/N] ", p->words[0], p->opt.service);
    fflush(stdout);
    return fgets(answer, sizeof answer, stdin) && (answer[0] == 'y' || answer[0] == 'Y');
}

static int cmd_evict(program *p)
{
    mgr *m = NULL;
    char done[600];
    if (!confirmed(p)) { say(p, "nothing was done"); return EXIT_FAILED; }
    int code = observe(p, &m);
    if (code) return code;
    snprintf(done, sizeof done, "%s of %s was told to leave", p->words[0], p->opt.service);
    return admin_done(p, m, mgr_evict(m, p->words[0]), done);
}

/* ============================================================================
 * plan: what a change would move
 * ========================================================================== */

typedef struct roster { mgr_member *members; uint32_t *slots; size_t count, cap; } roster;

/* slot 0: to be given, see roster_number. */
static void roster_add(roster *r, const char *id, uint32_t weight, uint64_t joined, uint32_t slot)
{
    if (r->count == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 16;
        r->members = (mgr_member *)must(realloc(r->members, r->cap * sizeof *r->members));
        r->slots = (uint32_t *)must(realloc(r->slots, r->cap * sizeof *r->slots));
    }
    r->slots[r->count] = slot;
    r->members[r->count].id = id;
    r->members[r->count].weight = weight;
    r->members[r->count++].joined = joined;
}

static size_t roster_find(const roster *r, const char *id)
{
    size_t i = 0;
    while (i < r->count && strcmp(r->members[i].id, id) != 0) i++;
    return i;
}

/* "ID" or "ID:WEIGHT"; the colon is cut off in place. */
static bool roster_parse(const program *p, roster *r, char *word)
{
    char *colon = strrchr(word, ':');
    unsigned long weight = 1;
    if (colon && !number_in(colon + 1, 1, 65535, &weight)) {
        say(p, "\"%s\" is not of the form ID[:WEIGHT], the weight from 1 to 65535", word);
        return false;
    }
    if (colon) *colon = 0;
    if (!*word) { say(p, "an instance of ID[:WEIGHT] has no ID"); return false; }
    if (roster_find(r, word) < r->count) { say(p, "instance %s is there already", word); return false; }
    uint64_t joined = 0;
    for (size_t i = 0; i < r->count; i++) if (r->members[i].joined > joined) joined = r->members[i].joined;
    roster_add(r, word, (uint32_t)weight, joined + 1, 0);
    return true;
}

static bool roster_has_slot(const roster *r, uint32_t slot)
{
    for (size_t i = 0; i < r->count; i++) if (r->slots[i] == slot) return true;
    return false;
}

/* As the service would: newcomers take the lowest free slot, one after the other. */
static void roster_number(roster *r)
{
    uint32_t next = 1;
    for (size_t i = 0; i < r->count; i++) {
        if (r->slots[i]) continue;
        while (roster_has_slot(r, next)) next++;
        r->slots[i] = next++;
    }
}

/* Slots are for equal weights, as the service itself will say. */
static bool roster_fits(const program *p, const roster *r, mgr_placement placement)
{
    const mgr_member *first = NULL;
    for (size_t i = 0; i < r->count && placement == MGR_PLACEMENT_SLOTS; i++) {
        const mgr_member *member = &r->members[i];
        if (!member->weight) continue;
        if (!first) first = member;
        if (member->weight == first->weight) continue;
        say(p, "placement slots is for equal weights: %s has %u, %s has %u",
            first->id, (unsigned)first->weight, member->id, (unsigned)member->weight);
        return false;
    }
    return true;
}

static bool roster_remove(const program *p, roster *r, const char *id)
{
    size_t at = roster_find(r, id);
    if (at == r->count) { say(p, "--remove %s: there is no such instance", id); return false; }
    memmove(r->members + at, r->members + at + 1, (r->count - at - 1) * sizeof *r->members);
    memmove(r->slots + at, r->slots + at + 1, (r->count - at - 1) * sizeof *r->slots);
    r->count--;
    return true;
}

/* "ID=WEIGHT"; cut apart in place. A draining instance has none, and no weight that it
 * is given would move anything. */
static bool roster_reweigh(const program *p, roster *r, char *word)
{
    char *sign = strrchr(word, '=');
    unsigned long weight;
    if (!sign || !number_in(sign + 1, 1, 65535, &weight)) {
        say(p, "--weight %s: not of the form ID=WEIGHT, the weight from 1 to 65535", word);
        return false;
    }
    *sign = 0;
    size_t at = roster_find(r, word);
    if (at == r->count) { say(p, "--weight %s: there is no such instance", word); return false; }
    if (!r->members[at].weight) {
        say(p, "--weight %s=%lu: the instance is draining, and takes nothing whatever its weight: manager undrain first", word, weight);
        return false;
    }
    r->members[at].weight = (uint32_t)weight;
    return true;
}

/* A map: who has which partition. */
typedef struct side {
    const char *const *names;
    size_t       count;
    const char **owners;            /* NULL: nobody */
    place       *places;
    roster       roster;
    mgr_placement placement;
    size_t       least, most;       /* partitions of the emptiest and the fullest instance */
} side;

static void side_spread(side *s)
{
    size_t *counts = (size_t *)must(calloc(s->roster.count + 1, sizeof *counts));
    for (size_t i = 0; i < s->count; i++) if (s->owners[i]) counts[roster_find(&s->roster, s->owners[i])]++;
    bool first = true;
    for (size_t i = 0; i < s->roster.count; i++) {
        if (!s->roster.members[i].weight) continue;
        if (first || counts[i] < s->least) s->least = counts[i];
        if (first || counts[i] > s->most) s->most = counts[i];
        first = false;
    }
    free(counts);
}

static void side_names(side *s, const char *const *names, size_t count)
{
    s->names = names;
    s->count = count;
    s->owners = (const char **)must(calloc(count + 1, sizeof *s->owners));
    s->places = places_of(names, count);
}

/* Refusals that stand in the view, as index pairs. */
static mgr_refusal *side_refusals(const side *s, const mgr_view *view, size_t *count)
{
    size_t most = 0;
    *count = 0;
    for (size_t i = 0; view && i < view->instance_count; i++) most += view->instances[i].refuse_count;
    mgr_refusal *pairs = (mgr_refusal *)must(calloc(most + 1, sizeof *pairs));
    for (size_t i = 0; view && i < view->instance_count; i++) {
        size_t member = roster_find(&s->roster, view->instances[i].id), partition = 0;
        if (member == s->roster.count) continue;
        for (size_t r = 0; r < view->instances[i].refuse_count; r++) {
            if (!places_find(s->places, s->count, view->instances[i].refuses[r], &partition)) continue;
            pairs[*count].partition = (uint32_t)partition;
            pairs[(*count)++].member = (uint32_t)member;
        }
    }
    return pairs;
}

static mgr_result side_map(side *s, const mgr_view *view)
{
    size_t refusal_count;
    mgr_refusal *refusals = side_refusals(s, view, &refusal_count);
    uint32_t *owners = (uint32_t *)must(calloc(s->count + 1, sizeof *owners));
    roster_number(&s->roster);
    mgr_result result = s->roster.count == 0 ? MGR_OK
        : s->placement == MGR_PLACEMENT_SLOTS
        ? mgr_rush_slots(s->names, s->count, s->roster.members, s->roster.slots, s->roster.count, refusals, refusal_count, owners)
        : mgr_rush_map_refusing(s->names, s->count, s->roster.members, s->roster.count, 1, refusals, refusal_count, owners);
    for (size_t i = 0; i < s->count && s->roster.count; i++)
        s->owners[i] = owners[i] == MGR_RUSH_NOBODY ? NULL : s->roster.members[owners[i]].id;
    free(owners);
    free(refusals);
    return result;
}

static void side_free(side *s)
{
    free(s->owners);
    free(s->places);
    free(s->roster.members);
    free(s->roster.slots);
}

typedef struct move { const char *partition, *from, *to; } move;
typedef struct plan { side before, after; move *moves; size_t count, least; } plan;

static int move_order(const void *a, const void *b) { return name_order(((const move *)a)->partition, ((const move *)b)->partition); }

static void plan_moves(plan *x)
{
    side *b = &x->before, *a = &x->after;
    x->moves = (move *)must(calloc(a->count + b->count + 1, sizeof *x->moves));
    for (size_t i = 0; i < a->count; i++) {
        size_t at;
        const char *from = places_find(b->places, b->count, a->names[i], &at) ? b->owners[at] : NULL;
        move step = { a->names[i], from, a->owners[i] };
        if (!same(step.from, step.to)) x->moves[x->count++] = step;
    }
    for (size_t i = 0, at; i < b->count; i++) {
        move step = { b->names[i], b->owners[i], NULL };
        if (step.from && !places_find(a->places, a->count, b->names[i], &at)) x->moves[x->count++] = step;
    }
    if (x->count) qsort(x->moves, x->count, sizeof *x->moves, move_order);
}

/* The fewest moves any even map could do with: everybody keeps what his share
 * allows; the seats left over by rounding go to those who have the most. */
static void plan_least(plan *x)
{
    const side *b = &x->before, *a = &x->after;
    const roster *r = &a->roster;
    size_t *had = (size_t *)must(calloc(r->count + 1, sizeof *had)), gone = 0, kept = 0, over = 0, seats = a->count;
    uint64_t weight = 0;
    for (size_t i = 0, at; i < b->count; i++) {
        if (!b->owners[i]) continue;
        if (places_find(a->places, a->count, b->names[i], &at)) had[roster_find(r, b->owners[i])]++;
        else gone++;
    }
    for (size_t i = 0; i < r->count; i++) weight += r->members[i].weight;
    for (size_t i = 0; weight && i < r->count; i++) {
        size_t share = (size_t)((uint64_t)a->count * r->members[i].weight / weight);
        seats -= share;
        kept += had[i] < share ? had[i] : share;
        over += had[i] > share && r->members[i].weight;
    }
    kept += over < seats ? over : seats;
    x->least = weight ? gone + a->count - kept : x->count;
    free(had);
}

/* Who is in it now, and who holds what, from the running service. */
static void plan_from_view(plan *x, const mgr_view *view, const char **names)
{
    for (size_t i = 0; i < view->instance_count; i++) {
        const mgr_view_instance *v = &view->instances[i];
        if (v->alive && !v->evicting) roster_add(&x->after.roster, v->id, v->draining ? 0 : v->weight, v->joined, v->slot);
        roster_add(&x->before.roster, v->id, v->alive && !v->joining && !v->draining ? v->weight : 0, v->joined, v->slot);
    }
    x->before.placement = view->placement;
    for (size_t i = 0; i < view->partition_count; i++) names[i] = view->partitions[i].name;
    side_names(&x->before, names, view->partition_count);
    for (size_t i = 0; i < view->partition_count; i++) x->before.owners[i] = view->partitions[i].assigned;
}

static int plan_on_paper(program *p, plan *x)
{
    if (!p->opt.partitions.count) { say(p, "--instances needs --partitions LIST"); return EXIT_USAGE; }
    for (size_t i = 0; i < p->opt.instances.count; i++)
        if (!roster_parse(p, &x->after.roster, p->opt.instances.names[i])) return EXIT_USAGE;
    for (size_t i = 0; i < x->after.roster.count; i++) {
        const mgr_member *member = &x->after.roster.members[i];
        roster_add(&x->before.roster, member->id, member->weight, member->joined, 0);
    }
    x->before.placement = p->opt.placement;
    if (!roster_fits(p, &x->before.roster, x->before.placement)) return EXIT_CONFIG;
    side_names(&x->before, list_names(&p->opt.partitions), p->opt.partitions.count);
    mgr_result result = side_map(&x->before, NULL);
    return result == MGR_OK ? EXIT_OK : failed(p, NULL, result);
}

static bool plan_undrained(const program *p, const mgr_view *view, const char *id)
{
    for (size_t i = 0; view && i < view->drained_count; i++) {
        if (strcmp(view->drained[i], id) != 0) continue;
        say(p, "%s would get nothing, for it drains when it comes: manager undrain -s %s %s takes that back", id, view->service_id, id);
        return false;
    }
    return true;
}

static int plan_make(program *p, plan *x, const mgr_view *view)
{
    for (size_t i = 0; i < p->opt.remove.count; i++) {
        const mgr_view_instance *v = view ? instance_in(view, p->opt.remove.names[i]) : NULL;
        if (v && is_away(view, v)) continue;    /* counted as gone already */
        if (!roster_remove(p, &x->after.roster, p->opt.remove.names[i])) return EXIT_USAGE;
    }
    for (size_t i = 0; i < p->opt.add.count; i++)
        if (!roster_parse(p, &x->after.roster, p->opt.add.names[i]) || !plan_undrained(p, view, p->opt.add.names[i])) return EXIT_USAGE;
    for (size_t i = 0; i < p->opt.reweigh.count; i++)
        if (!roster_reweigh(p, &x->after.roster, p->opt.reweigh.names[i])) return EXIT_USAGE;
    if (p->opt.partitions.count) side_names(&x->after, list_names(&p->opt.partitions), p->opt.partitions.count);
    else side_names(&x->after, x->before.names, x->before.count);
    x->after.placement = p->opt.placement ? p->opt.placement : x->before.placement;
    if (!roster_fits(p, &x->after.roster, x->after.placement)) return EXIT_CONFIG;
    mgr_result result = side_map(&x->after, view);
    if (result != MGR_OK) return failed(p, NULL, result);
    plan_moves(x);
    plan_least(x);
    side_spread(&x->before);
    side_spread(&x->after);
    return EXIT_OK;
}

static void plan_json(text *out, const plan *x)
{
    text_add(out, "{\"moves\":[");
    for (size_t i = 0; i < x->count; i++) {
        text_add(out, i ? ",{\"partition\":" : "{\"partition\":");
        text_json(out, x->moves[i].partition);
        text_add(out, ",\"from\":");
        text_json_or_null(out, x->moves[i].from);
        text_add(out, ",\"to\":");
        text_json_or_null(out, x->moves[i].to);
        text_add(out, "}");
    }
    text_format(out, "],\"least\":%zu,\"before\":{\"min\":%zu,\"max\":%zu},\"after\":{\"min\":%zu,\"max\":%zu}}\n",
                x->least, x->before.least, x->before.most, x->after.least, x->after.most);
}

/* "3 to 4", or "3" where they are the same. */
static void plan_spread(text *out, const side *s)
{
    if (s->least == s->most) text_format(out, "%zu", s->most);
    else text_format(out, "%zu to %zu", s->least, s->most);
}

static bool side_takes(const side *s)
{
    for (size_t i = 0; i < s->roster.count; i++) if (s->roster.members[i].weight) return true;
    return false;
}

static void plan_summary(text *out, const plan *x)
{
    bool now = side_takes(&x->before), then = side_takes(&x->after);
    if (!x->count) text_add(out, "nothing moves");
    else {
        size_t all = x->after.count > x->before.count ? x->after.count : x->before.count;
        text_format(out, "\n%zu move%s, for ", x->count, x->count == 1 ? "" : "s");
        text_count(out, all, "partition");
        text_format(out, "; the least possible: %zu", x->least);
    }
    text_add(out, "; partitions of an instance: ");
    if (now) plan_spread(out, &x->before);
    else text_add(out, "none takes any");
    text_add(out, " now, ");
    if (then) plan_spread(out, &x->after);
    else text_add(out, "none takes any");
    text_add(out, " then");
    mgr_placement placement = x->after.placement;
    if (placement != x->before.placement || placement == MGR_PLACEMENT_SLOTS) text_format(out, "; placed by %s", placement_word(placement));
    text_add(out, "\n");
}

static void plan_table(text *out, const plan *x)
{
    static const char *const HEADS[] = { "PARTITION", "FROM", "TO" };
    table t;
    if (x->count) table_head(&t, HEADS, sizeof HEADS / sizeof *HEADS);
    for (size_t i = 0; i < x->count; i++) {
        cell_add(&t, PLAIN, "%s", x->moves[i].partition);
        cell_add(&t, x->moves[i].from ? PLAIN : DIM, "%s", x->moves[i].from ? x->moves[i].from : "-");
        cell_add(&t, x->moves[i].to ? PLAIN : DIM, "%s", x->moves[i].to ? x->moves[i].to : "-");
    }
    if (x->count) table_end(out, &t);
    plan_summary(out, x);
}

static void plan_free(plan *x)
{
    free(x->moves);
    side_free(&x->before);
    side_free(&x->after);
}

/* Those whose share is kept, unless the plan is about them. */
static void plan_away(const program *p, text *out, const plan *x, const mgr_view *view)
{
    for (size_t i = 0; i < view->instance_count; i++) {
        const mgr_view_instance *v = &view->instances[i];
        bool asked = roster_find(&x->after.roster, v->id) < x->after.roster.count;
        for (size_t n = 0; n < p->opt.remove.count; n++) asked = asked || same(p->opt.remove.names[n], v->id);
        if (!asked && is_away(view, v))
            text_format(out, "%s is away, and counted as gone; its share is kept for its return: --add %s counts it as back\n",
                        v->id, v->id);
    }
}

static int plan_show(program *p, plan *x, const mgr_view *view)
{
    int code = plan_make(p, x, view);
    text out = { NULL, 0, 0, false };
    if (code == EXIT_OK && p->opt.json) plan_json(&out, x);
    else if (code == EXIT_OK) plan_table(&out, x);
    if (code == EXIT_OK && !p->opt.json && view) plan_away(p, &out, x, view);
    if (code == EXIT_OK && !p->opt.json && view && view->paused) {
        pause_text(&out, view);
        text_format(&out, "; nothing of this moves before manager resume -s %s, unless what has it fails, drains or leaves\n",
                    p->opt.service);
    }
    print_text(&out);
    text_free(&out);
    return code;
}

static int plan_live(program *p, plan *x)
{
    mgr *m = NULL;
    mgr_view *view = NULL;
    int code = observe(p, &m);
    if (code) return code;
    mgr_result result = view_read(m, READ_TIMEOUT_MS, &view);
    if (result != MGR_OK) code = failed(p, m, result);
    else {
        const char **names = (const char **)must(calloc(view->partition_count + 1, sizeof *names));
        plan_from_view(x, view, names);
        code = plan_show(p, x, view);
        free(names);
        mgr_view_free(m, view);
    }
    mgr_close(m);
    return code;
}

static int cmd_plan(program *p)
{
    plan x;
    int code;
    memset(&x, 0, sizeof x);
    if (p->opt.instances.count && p->opt.service) {
        say(p, "--instances plans on paper, and -s for a running service: give one of them");
        code = EXIT_USAGE;
    } else if (p->opt.instances.count) {
        code = plan_on_paper(p, &x);
        if (!code) code = plan_show(p, &x, NULL);
    } else if (p->opt.service) {
        code = plan_live(p, &x);
    } else {
        say(p, "no service given: add -s SERVICE, or --instances LIST --partitions LIST");
        code = EXIT_USAGE;
    }
    plan_free(&x);
    return code;
}

/* ============================================================================
 * timings: the worst case of each failure, from the settings
 * ========================================================================== */

/* The terms a worst case is the sum of, as they follow one another. */
enum {
    BACKOFF = 1, DOWNTIME = 2, SILENCE = 4, ROUND = 8, LEASE = 16, GRACE = 32, KILL_MARGIN = 64, DETECT = 128, CHECK_TTL = 256,
    DELAY = 512, REJOIN = 1024, ELECTION = 2048, SETTLE = 4096, CONSUL = 8192,
    WITHOUT_END = 16384         /* as long as it lasts: the other terms count from when it is over */
};

enum { TERM_COUNT = 14 };

typedef struct settings {
    int64_t lease_ms, delay_ms, ttl_ms, grace_ms, margin_ms, rejoin_ms, settle_ms;
    int64_t detect_ms, election_ms;     /* as the agent's own settings have it, else by Consul's defaults */
    mgr_agent_view agent;
} settings;

enum {
    DEFAULT_LEASE_MS = 15000, DEFAULT_TTL_MS = 15000, DEFAULT_SETTLE_MS = 1000,
    DEFAULT_BACKOFF_MS = 250,
    CONFIRMS_PER_LEASE = 3,
    CHECK_TTL_MORE_MS = 2000,       /* an instance's own check ends so much after the delay */
    PROBE_MS = 1000, SUSPICION_MULT = 4, RAFT_ELECTION_MS = 5000,   /* Consul's defaults */
    DETECT_PER_SUSPICION = 2,       /* until serf calls a node failed, 8 s: mostly 5 to 6, up to 7.5 in some 250 trials */
    ELECTION_PER_TIMEOUT = 2,       /* until a new leader stands, 10 s: followers wait one to two timeouts */
    DETECT_LEAST_MS = 1000, ELECTION_LEAST_MS = 3000,
    CONSUL_MS = 1000                /* one wake-up, read, lock and start; an allowance: measured 0.03 s */
};

typedef struct failure { const char *name; unsigned failover, overlap; const char *why; } failure;

static const failure FAILURES[] = {
    {"worker dies", BACKOFF | KILL_MARGIN, 0,
     "its own instance starts it again, once all it had begun is dead; while it keeps dying the back-off doubles, up to 60s"},
    {"manager killed", GRACE | KILL_MARGIN | REJOIN | CONSUL, 0,
     "its keeper stops the workers, proves them dead and gives them up"},
    {"manager frozen", LEASE | KILL_MARGIN | REJOIN | CONSUL, 0,
     "its keeper kills the workers at the lease's end and proves them dead"},
    {"keeper killed", KILL_MARGIN | SETTLE | CONSUL, 0,
     "the guard kills all workers, the manager gives them up on its word and enters anew; the others do not wait for that"},
    {"keeper frozen", SILENCE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "the manager kills it for its silence; then as for a keeper that was killed"},
    {"guard killed", GRACE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "the keeper stops the workers and gives them up, the manager enters anew; the others do not wait for that"},
    {"guard frozen", SILENCE | GRACE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "the manager kills it for its silence; then as for a guard that was killed"},
    {"manager and keeper killed", CHECK_TTL | DELAY | CONSUL, 0,
     "the guard kills all workers, but has no network: the instance's check runs out, and the others wait the delay"},
    {"manager and keeper frozen", CHECK_TTL | DELAY | CONSUL, 0,
     "the guard kills all workers at the lease's end; then as if both were killed"},
    {"manager killed, keeper frozen", CHECK_TTL | DELAY | CONSUL, 0,
     "the guard kills all workers at the lease's end; then as if both were killed"},
    {"keeper killed, manager frozen", CHECK_TTL | DELAY | CONSUL, 0,
     "the guard kills all workers at once; then as if both were killed"},
    {"manager and guard killed", GRACE | KILL_MARGIN | REJOIN | CONSUL, 0,
     "the keeper stops the workers, proves them dead and gives them up"},
    {"manager and guard frozen", LEASE | KILL_MARGIN | REJOIN | CONSUL, 0,
     "the keeper kills the workers at the lease's end and proves them dead"},
    {"manager killed, guard frozen", GRACE | KILL_MARGIN | REJOIN | CONSUL, 0,
     "the keeper stops the workers, proves them dead and gives them up"},
    {"guard killed, manager frozen", GRACE | KILL_MARGIN | REJOIN | CONSUL, 0,
     "the keeper stops the workers, proves them dead and gives them up"},
    {"keeper and guard killed", LEASE | KILL_MARGIN | DELAY | CONSUL, 0,
     "without a cgroup the manager can prove nothing: it ends its session after the lease, and the others wait the delay"},
    {"keeper and guard frozen", SILENCE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "the manager kills the keeper for its silence and wakes the guard; then as for a keeper that was killed"},
    {"keeper killed, guard frozen", SILENCE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "the manager wakes the guard; then as for a keeper that was killed"},
    {"guard killed, keeper frozen", SILENCE | LEASE | KILL_MARGIN | DELAY | CONSUL, 0,
     "the guard's death wakes the keeper; one that is frozen after that is killed for its silence; then as if both were killed"},
    {"all three killed", CHECK_TTL | DELAY | CONSUL, 0,
     "the workers die with their keeper; the instance's check runs out, and the others wait the delay"},
    {"all three killed, restarted at once", SETTLE | KILL_MARGIN | CONSUL, 0,
     "on its host, with a cgroup or pidns: the restart proves the former life dead and certifies it; without one, as before"},
    {"host dies", DETECT | DELAY | CONSUL, 0,
     "nobody can prove the workers dead, so the others wait the delay"},
    {"host dies and is soon back", DOWNTIME | CHECK_TTL | DELAY | CONSUL, 0,
     "if it is back before it is missed, its instances' old checks run out only then; the downtime is less than the detection"},
    {"host frozen whole", DETECT | DELAY | CONSUL, LEASE | KILL_MARGIN,
     "on waking, workers may go on for what was left of the lease: pass MANAGER_FENCE to what they write to. "
     "With manager, keeper and guard frozen, but not the workers, these go on until one of the three does"},
    {"host frozen for less than its lease", WITHOUT_END | GRACE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "nothing moves if two thirds of the lease, less the polite stop and half the kill margin, cover it; "
     "else the work stops, and starts again"},
    {"agent stops politely", DELAY | CONSUL, 0,
     "its sessions end at once; without an agent nobody can prove the workers dead"},
    {"agent killed", DETECT | DELAY | CONSUL, 0,
     "nothing moves if it is back before the lease ends"},
    {"agent frozen", DETECT | DELAY | CONSUL, 0,
     "as if it were killed"},
    {"network cut", DETECT | DELAY | CONSUL, 0,
     "the workers beyond the cut are dead before the delay is over"},
    {"network cut one way", DETECT | DELAY | CONSUL, 0,
     "who is not heard, or does not hear, counts as failed like one who is cut off"},
    {"network slow", 0, 0,
     "nothing moves while an answer takes less than a fifth of the lease"},
    {"network very slow", CHECK_TTL | DELAY | CONSUL, 0,
     "no confirmation comes in time: the workers stop, and are given up as soon as that gets through, or their check runs out"},
    {"network flaps", WITHOUT_END | ROUND | DETECT | DELAY | SETTLE | CONSUL, 0,
     "work stops wherever a lease is not confirmed; at the end at most as if a cut had only begun"},
    {"leader lost", ROUND | ELECTION | SETTLE | CONSUL, 0,
     "nothing moves if the lease less the polite stop covers the election; else work stops, and comes back with the leader"},
    {"quorum lost", WITHOUT_END | ROUND | KILL_MARGIN | SETTLE | CONSUL, 0,
     "all work stops at the lease's end, and comes back with the quorum"},
    {"session destroyed by hand", GRACE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "its instance stops the workers, proves them dead and enters anew; the others do not wait for that"},
    {"instance evicted", GRACE | KILL_MARGIN | CONSUL, 0,
     "it stops the workers and releases them"},
    {"owner key deleted by hand", ROUND | KILL_MARGIN | DELAY | CONSUL, 0,
     "its owner kills the work at the next confirmation; a key that is not there counts as lost, so everybody waits the delay"},
    {"owner key changed by hand", ROUND | KILL_MARGIN | DELAY | CONSUL, 0,
     "its owner kills the work at the next confirmation, and takes the partition anew"},
    {"instance key deleted by hand", GRACE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "it counts as removed: its workers stop, and it enters anew"},
    {"instance key changed by hand", GRACE | KILL_MARGIN | SETTLE | CONSUL, 0,
     "it counts as gone until its instance has written it anew: what moves for that is handed over, and comes back"},
    {"partitions key deleted by hand", 0, 0,
     "cluster/partitions is put back by whoever sees it first"},
    {"all keys deleted by hand", ROUND | KILL_MARGIN | DELAY | SETTLE | CONSUL, 0,
     "all work is killed at the next confirmation; then everything is made anew, and no release is believed before the delay"}
};

enum { FAILURE_COUNT = sizeof FAILURES / sizeof *FAILURES };

/* As the library has it: a quarter of the lease without a heartbeat, seen twice,
 * and looked for every fifth of the lease. */
static int64_t silence_ms(int64_t lease_ms)
{
    int64_t quarter = lease_ms / 4 > 500 ? lease_ms / 4 : 500, look = lease_ms / 5 > 250 ? lease_ms / 5 : 250;
    return quarter + lease_ms / 5 + look;
}

static int64_t term_ms(const settings *s, unsigned term)
{
    switch (term) {
    case BACKOFF: return DEFAULT_BACKOFF_MS;
    case DOWNTIME: return s->detect_ms;
    case ROUND: return (s->lease_ms < s->ttl_ms ? s->lease_ms : s->ttl_ms) / CONFIRMS_PER_LEASE;
    case LEASE: return s->lease_ms;
    case GRACE: return s->grace_ms;
    case KILL_MARGIN: return s->margin_ms;
    case DETECT: return s->detect_ms;
    case SILENCE: return silence_ms(s->lease_ms);
    case CHECK_TTL: return s->delay_ms + CHECK_TTL_MORE_MS;
    case DELAY: return s->delay_ms > s->rejoin_ms ? s->delay_ms : s->rejoin_ms;
    case REJOIN: return s->rejoin_ms;
    case ELECTION: return s->election_ms;
    case SETTLE: return s->settle_ms;
    case CONSUL: return CONSUL_MS;
    default: return 0;
    }
}

/* An election that the lease covers stops nothing. */
static bool nothing_stops(const settings *s, unsigned terms)
{
    return !terms || ((terms & ELECTION) && s->lease_ms - s->grace_ms >= s->election_ms);
}

/* From the fault, or without end from when it is over. */
static int64_t terms_ms(const settings *s, unsigned terms)
{
    int64_t sum = 0;
    if (nothing_stops(s, terms)) return 0;
    for (unsigned i = 0; i < TERM_COUNT; i++) if (terms & (1u << i)) sum += term_ms(s, 1u << i);
    return sum;
}

/* The sum in words and numbers, so that it can be checked. */
static void terms_words(text *out, const settings *s, unsigned terms)
{
    static const char *const WORDS[TERM_COUNT] = {
        "back-off", "downtime", "silence", "confirmation", "lease", "stop grace", "kill margin", "detection", "check TTL",
        "delay", "rejoin grace", "election", "settle", "consul"
    };
    const char *plus = "";
    for (unsigned i = 0; i < TERM_COUNT && !nothing_stops(s, terms); i++) {
        if (!(terms & (1u << i)) || !term_ms(s, 1u << i)) continue;
        bool rejoin = 1u << i == DELAY && s->rejoin_ms > s->delay_ms;
        text_format(out, "%s%s ", plus, rejoin ? "rejoin grace" : WORDS[i]);
        text_duration(out, term_ms(s, 1u << i));
        plus = " + ";
    }
}

static int64_t given_ms(uint32_t given, int64_t otherwise)
{
    return given == 0 ? otherwise : given == MGR_NONE ? 0 : given;
}

/* The library's own rule: clocks drift. */
static int64_t least_delay_ms(int64_t lease_ms) { return ((lease_ms + MGR_KILL_MARGIN_MS) * 1002 + 999) / 1000; }

static void settings_of(settings *s, const options *o, uint32_t lease_ms, uint32_t delay_ms)
{
    s->lease_ms = given_ms(o->lease_ms, lease_ms ? lease_ms : DEFAULT_LEASE_MS);
    s->delay_ms = given_ms(o->delay_ms, delay_ms && !o->lease_ms ? delay_ms : (least_delay_ms(s->lease_ms) + 999) / 1000 * 1000);
    s->margin_ms = MGR_KILL_MARGIN_MS;
    s->ttl_ms = given_ms(o->ttl_ms, DEFAULT_TTL_MS);
    s->grace_ms = given_ms(o->stop_grace_ms, s->lease_ms / 3);
    s->rejoin_ms = given_ms(o->rejoin_grace_ms, 0);
    s->settle_ms = given_ms(o->settle_ms, DEFAULT_SETTLE_MS);
}

static void settings_of_agent(settings *s, const mgr_agent_view *a)
{
    int64_t probe_ms = a->probe_ms ? a->probe_ms : PROBE_MS, mult = a->suspicion_mult ? a->suspicion_mult : SUSPICION_MULT;
    int64_t election_ms = a->raft_election_ms ? a->raft_election_ms : RAFT_ELECTION_MS;
    s->agent = *a;
    s->detect_ms = DETECT_PER_SUSPICION * mult * probe_ms;
    s->election_ms = ELECTION_PER_TIMEOUT * election_ms;
    if (s->detect_ms < DETECT_LEAST_MS) s->detect_ms = DETECT_LEAST_MS;
    if (s->election_ms < ELECTION_LEAST_MS) s->election_ms = ELECTION_LEAST_MS;
}

static void timings_json(text *out, const settings *s)
{
    text_format(out, "{\"settings\":{\"lease_ms\":%lld,\"delay_ms\":%lld,\"kill_margin_ms\":%lld,\"stop_grace_ms\":%lld,"
                "\"session_ttl_ms\":%lld,\"rejoin_grace_ms\":%lld,\"settle_ms\":%lld,"
                "\"detection_ms\":%lld,\"election_ms\":%lld,\"consul_ms\":%d,\"session_ttl_min_ms\":%u,\"raft_election_ms\":%u,"
                "\"probe_ms\":%u,\"suspicion_mult\":%u},\"failures\":[",
                (long long)s->lease_ms, (long long)s->delay_ms, (long long)s->margin_ms, (long long)s->grace_ms,
                (long long)s->ttl_ms, (long long)s->rejoin_ms, (long long)s->settle_ms, (long long)s->detect_ms, (long long)s->election_ms,
                CONSUL_MS, (unsigned)s->agent.session_ttl_min_ms, (unsigned)s->agent.raft_election_ms, (unsigned)s->agent.probe_ms,
                (unsigned)s->agent.suspicion_mult);
    for (size_t i = 0; i < FAILURE_COUNT; i++) {
        long long failover_ms = (long long)terms_ms(s, FAILURES[i].failover);
        text_format(out, "%s{\"failure\":\"%s\",\"failover_ms\":", i ? "," : "", FAILURES[i].name);
        text_format(out, FAILURES[i].failover & WITHOUT_END ? "null,\"after_ms\":%lld" : "%lld", failover_ms);
        text_format(out, ",\"overlap_ms\":%lld,\"why\":", (long long)terms_ms(s, FAILURES[i].overlap));
        text_json(out, FAILURES[i].why);
        text_add(out, "}");
    }
    text_add(out, "]}\n");
}

/* Which of it the agent showed. */
static void timings_agent(text *out, const settings *s)
{
    const mgr_agent_view *a = &s->agent;
    if (!a->probe_ms && !a->raft_election_ms) {
        text_add(out, "detection and election are those of Consul's defaults (with -s the agent is asked for its own)\n");
        return;
    }
    text_add(out, "the agent: probe interval ");
    text_duration(out, a->probe_ms);
    text_format(out, ", suspicion_mult %u", (unsigned)a->suspicion_mult);
    if (a->server) {
        text_add(out, ", raft election timeout ");
        text_duration(out, a->raft_election_ms);
        if (a->raft_election_ms >= 1000) text_format(out, " (raft_multiplier %u)", (unsigned)(a->raft_election_ms / 1000));
        text_add(out, ", session TTL minimum ");
        text_duration(out, a->session_ttl_min_ms ? a->session_ttl_min_ms : 10000);
    } else text_add(out, "; a client agent does not show the servers' raft_multiplier and session TTL minimum: by Consul's defaults");
    text_add(out, "\n");
}

static void timings_settings(text *out, const settings *s)
{
    const struct { const char *word; int64_t ms; } shown[] = {
        {"lease", s->lease_ms}, {"delay", s->delay_ms}, {"kill margin", s->margin_ms}, {"stop grace", s->grace_ms},
        {"rejoin grace", s->rejoin_ms}, {"settle", s->settle_ms}, {"detection", s->detect_ms}, {"election", s->election_ms},
        {"consul", CONSUL_MS}
    };
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        text_format(out, "%s%s ", i ? ", " : "", shown[i].word);
        text_duration(out, shown[i].ms);
    }
    text_add(out, "\n");
    timings_agent(out, s);
    text_add(out, "\n");
}

/* A row for each failure, and below it why it takes so long. */
static void timings_table(text *out, const settings *s)
{
    static const char *const HEADS[] = { "FAILURE", "FAILOVER", "OVERLAP", "SUM OF" };
    table t;
    text rows = { NULL, 0, 0, false };
    timings_settings(out, s);
    table_head(&t, HEADS, sizeof HEADS / sizeof *HEADS);
    for (size_t i = 0; i < FAILURE_COUNT; i++) {
        text failover = { NULL, 0, 0, false }, overlap = { NULL, 0, 0, false }, sum = { NULL, 0, 0, false };
        int64_t failover_ms = terms_ms(s, FAILURES[i].failover), overlap_ms = terms_ms(s, FAILURES[i].overlap);
        if (FAILURES[i].failover & WITHOUT_END) text_add(&failover, "its end + ");
        if (failover_ms == 0) text_add(&failover, "none");
        else text_duration(&failover, failover_ms);
        if (overlap_ms == 0) text_add(&overlap, "none");
        else text_duration(&overlap, overlap_ms);
        terms_words(&sum, s, FAILURES[i].failover);
        cell_add(&t, PLAIN, "%s", FAILURES[i].name);
        cell_add(&t, PLAIN, "%s", text_of(&failover));
        cell_add(&t, overlap_ms ? RED : GREEN, "%s", text_of(&overlap));
        cell_add(&t, PLAIN, "%s", text_of(&sum));
        text_free(&failover);
        text_free(&overlap);
        text_free(&sum);
    }
    table_end(&rows, &t);
    const char *row = text_of(&rows);
    for (size_t i = 0; *row; i++) {
        size_t len = strcspn(row, "\n");
        text_format(out, "%.*s\n", (int)len, row);
        if (i > 0 && i <= FAILURE_COUNT) text_paragraph(out, FAILURES[i - 1].why, 4, 0);
        row += len + (row[len] == '\n');
    }
    text_free(&rows);
}

/* What the instances of a running service use, of which the longest decides, and their
 * agent, as far as it says so. */
static int timings_in_force(program *p, uint32_t *lease_ms, uint32_t *delay_ms, mgr_agent_view *agent)
{
    mgr *m = NULL;
    mgr_view *view = NULL;
    int code = observe(p, &m);
    if (code) return code;
    mgr_result result = view_read(m, READ_TIMEOUT_MS, &view);
    if (result != MGR_OK) code = failed(p, m, result);
    for (size_t i = 0; view && i < view->instance_count; i++) {
        if (view->instances[i].lease_ms > *lease_ms) *lease_ms = view->instances[i].lease_ms;
        if (view->instances[i].delay_ms > *delay_ms) *delay_ms = view->instances[i].delay_ms;
    }
    if (view) mgr_view_free(m, view);
    if (!code && mgr_agent_read(m, READ_TIMEOUT_MS, agent) != MGR_OK)
        say(p, "by Consul's default timing, for the agent does not tell its own: %s", mgr_error_text(m));
    mgr_close(m);
    return code;
}

static void timings_too_short(text *out, const settings *s)
{
    text_add(out, "a delay of ");
    text_duration(out, s->delay_ms);
    text_add(out, " is too short for a lease of ");
    text_duration(out, s->lease_ms);
    text_add(out, ": it must be at least (lease + ");
    text_duration(out, s->margin_ms);
    text_add(out, ") * 1.002 = ");
    text_duration(out, least_delay_ms(s->lease_ms));
}

/* What run would refuse. */
static int timings_check(const program *p, const settings *s)
{
    long long lease_ms = s->lease_ms, ttl_ms = s->ttl_ms, grace_ms = s->grace_ms;
    if (lease_ms < 1000 || lease_ms > 86400000) say(p, "--lease is %lldms: it must be from 1000 to 86400000", lease_ms);
    else if (ttl_ms < 10000 || ttl_ms > 86400000) say(p, "--ttl is %lldms: Consul takes 10000 to 86400000", ttl_ms);
    else if (ttl_ms < s->agent.session_ttl_min_ms)
        say(p, "a session TTL of %lldms is refused by Consul, whose session_ttl_min is %ums: give run and timings --ttl %ums", ttl_ms,
            (unsigned)s->agent.session_ttl_min_ms, (unsigned)s->agent.session_ttl_min_ms);
    else if (grace_ms > lease_ms / 2)
        say(p, "--stop-grace %lldms is too long: it may be at most half of --lease %lldms", grace_ms, lease_ms);
    else return EXIT_OK;
    return EXIT_CONFIG;
}

static int cmd_timings(program *p)
{
    uint32_t lease_ms = 0, delay_ms = 0;
    settings s;
    mgr_agent_view agent;
    memset(&agent, 0, sizeof agent);
    int code = p->opt.service ? timings_in_force(p, &lease_ms, &delay_ms, &agent) : EXIT_OK;
    if (code) return code;
    settings_of(&s, &p->opt, lease_ms, delay_ms);
    settings_of_agent(&s, &agent);
    text out = { NULL, 0, 0, false };
    code = timings_check(p, &s);
    if (code) return code;
    if (s.delay_ms < least_delay_ms(s.lease_ms)) {
        timings_too_short(&out, &s);
        say(p, "%s", text_of(&out));
        text_free(&out);
        return EXIT_CONFIG;
    }
    if (p->opt.json) timings_json(&out, &s);
    else timings_table(&out, &s);
    print_text(&out);
    text_free(&out);
    return EXIT_OK;
}

/* ============================================================================
 * Commands: one table
 * ========================================================================== */

static const command COMMANDS[] = {
    {"run", RUN, "-s SERVICE [-i INSTANCE] [-p LIST] [options] -- COMMAND [ARG...]",
     "be an instance: run COMMAND for each partition that is ours",
     "{partition} {instance} {service} {fence} in the ARGs are replaced. COMMAND gets MANAGER_SERVICE,\n"
     "MANAGER_INSTANCE, MANAGER_PARTITION, MANAGER_FENCE and MANAGER_ATTEMPT, and not the Consul token.\n"
     "It starts in the directory in which manager was called, or in --directory.\n"
     "SIGTERM and SIGINT hand everything over and leave; a second one kills at once.\n",
     NULL, true, true, cmd_run},
    {"dev", DEV, "-p LIST [-n INSTANCES] [options] -- COMMAND [ARG...]",
     "try it: a throwaway agent and some instances in one terminal",
     "The agent lives in memory, on this machine only, and forgets everything; with --consul, that one\n"
     "is used instead. Ctrl-C ends all of it, a second one at once.\n",
     NULL, true, false, cmd_dev},
    {"status", STATUS, "-s SERVICE [--json] [--watch]",
     "show instances and partitions; exit 3 unless converged", "", NULL, false, true, cmd_status},
    {"why", WHY, "-s SERVICE PARTITION",
     "say why a partition is where it is, or is not running", "", "PARTITION", false, true, cmd_why},
    {"wait", WAIT, "-s SERVICE [--timeout 30s] [--live NUMBER]",
     "wait until every partition is assumed; exit 3 if it is not", "", NULL, false, true, cmd_wait},
    {"plan", PLAN,
     "-s SERVICE [--add ID[:WEIGHT]]... [--remove ID]... [--weight ID=WEIGHT]... [--partitions LIST] [--placement POLICY] [--json]",
     "show what a change would move; changes nothing",
     "On paper: manager plan --instances a,b:2,c --partitions 0..15 --add d\n"
     "During a pause it shows what would move at its end.\n", NULL, false, false, cmd_plan},
    {"partitions", PARTITIONS, "-s SERVICE [LIST] [--placement POLICY]",
     "change the partition set of a running service, or how it is placed",
     "POLICY rush places by weight, and little moves whatever changes. POLICY slots numbers the instances,\n"
     "which must weigh the same: as little as can moves when one comes or goes, much when the set changes.\n"
     "A change of policy moves most partitions, once: manager plan --placement shows what.\n", "LIST", false, true, cmd_partitions},
    {"drain", DRAIN, "-s SERVICE INSTANCE",
     "make an instance hand everything over and stay",
     "The wish belongs to the id: it holds for an instance that is away, and when one of this id comes\n"
     "back, until undrain.\n", "INSTANCE", false, true, cmd_drain},
    {"undrain", UNDRAIN, "-s SERVICE INSTANCE",
     "let it take work again", "", "INSTANCE", false, true, cmd_undrain},
    {"pause", PAUSE, "-s SERVICE [--reason TEXT]",
     "hold every planned move of the service until resume",
     "Instances keep what they hold: joins, weights and returning instances move nothing. What has no\n"
     "holder goes where the map wants it: what dead and leaving instances had, new partitions. Drain,\n"
     "evict and removed partitions are done as well. Paused already, only the reason is replaced.\n", NULL, false, true, cmd_pause},
    {"resume", RESUME, "-s SERVICE",
     "go on after a pause, or after the circuit breaker", "", NULL, false, true, cmd_resume},
    {"evict", EVICT, "-s SERVICE INSTANCE [--yes]",
     "make an instance leave; asks on a terminal", "", "INSTANCE", false, true, cmd_evict},
    {"timings", TIMINGS, "[-s SERVICE] [--json]",
     "worst-case failover and overlap for each kind of failure",
     "With -s, lease and delay are those in force, and the agent is asked for its own timing (raft_multiplier,\n"
     "gossip, session TTL minimum); what is given on the command line goes before. Detection is that of up to\n"
     "10 agents: by memberlist's rule, each tenfold takes serf about 4s more.\n"
     "\"its end + 2s\" counts from when the failure is over; in JSON failover_ms is null then, and after_ms says it.\n",
     NULL, false, false, cmd_timings}
};

enum { COMMAND_COUNT = sizeof COMMANDS / sizeof *COMMANDS };

static const struct { unsigned commands; int code; const char *text; } EXITS[] = {
    {ANY, EXIT_OK, "clean"}, {ANY, EXIT_FAILED, "failed"}, {STATUS | WAIT, EXIT_NOT_CONVERGED, "not converged"},
    {ANY, EXIT_USAGE, "wrong usage"}, {ANY, EXIT_NO_CLUSTER, "cluster lost or unreachable"}, {RUN | DEV, EXIT_EVICTED, "evicted"},
    {ANY, EXIT_DENIED, "an ACL right is missing"}, {ANY, EXIT_CONFIG, "wrong configuration or identity"}
};

/* Whether an option or the positional argument of these commands is called so. */
static bool help_speaks_of(unsigned commands, const char *argument)
{
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if ((OPTIONS[i].commands & commands) && OPTIONS[i].help && same(OPTIONS[i].argument, argument)) return true;
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if ((COMMANDS[i].bit & commands) && same(COMMANDS[i].word, argument)) return true;
    return false;
}

/* Only what these commands have to do with. */
static void help_footer(unsigned commands)
{
    bool lists = help_speaks_of(commands, "LIST"), durations = help_speaks_of(commands, "DURATION");
    if (lists || durations) fputs("\n", stdout);
    if (lists) fputs("A LIST is 0..15, or a,b,c, or both as in 0..15,x, or @FILE with one name a line.\n", stdout);
    if (durations) fputs("A DURATION needs a unit: 250ms, 10s, 5m.\n", stdout);
    fputs("\nExit codes: ", stdout);
    for (size_t i = 0, shown = 0; i < sizeof EXITS / sizeof *EXITS; i++)
        if (EXITS[i].commands & commands) printf("%s%d %s", shown++ ? shown == 6 ? ",\n" : ", " : "", EXITS[i].code, EXITS[i].text);
    fputs(".\n", stdout);
}

static int help_all(void)
{
    printf("manager %s: shares out the partitions of a service among its instances; at most one instance\n"
           "works on a partition, ever; eventually exactly one does.\n\n", MANAGER_VERSION);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        printf("  manager %s %s\n      %s\n", COMMANDS[i].name, COMMANDS[i].synopsis, COMMANDS[i].summary);
    printf("\nmanager COMMAND --help, or manager help COMMAND, has the options of each; manager --version.\n");
    help_footer(ANY);
    return EXIT_OK;
}

static int help_one(const command *c)
{
    printf("manager %s %s\n\n%s.\n%s\n", c->name, c->synopsis, c->summary, c->details);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const option *o = &OPTIONS[i];
        char left[48];
        if (!(o->commands & c->bit) || !o->help) continue;
        char letter[6] = "    ";
        if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name, o->argument ? " " : "", o->argument ? o->argument : "");
        text line = { NULL, 0, 0, false };
        text_format(&line, "  %-28s ", left);
        text_paragraph(&line, o->help, HELP_COLUMN, line.len < HELP_COLUMN ? HELP_COLUMN : line.len);
        fputs(text_of(&line), stdout);
        text_free(&line);
    }
    help_footer(c->bit);
    return EXIT_OK;
}

/* --help before a "--" wins over everything else. */
static bool help_wanted(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

static bool command_find(program *p, const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) if (strcmp(name, COMMANDS[i].name) == 0) p->command = &COMMANDS[i];
    if (!p->command) say(p, "unknown command \"%s\"; see manager --help", name);
    return p->command != NULL;
}

/* help, help COMMAND; help COMMAND --help does no harm. */
static int help_asked(program *p, int argc, char **argv)
{
    if (argc < 1 || argv[0][0] == '-') return help_all();
    return command_find(p, argv[0]) ? help_one(p->command) : EXIT_USAGE;
}

static int dispatch(program *p, int argc, char **argv)
{
    if (argc < 2) {
        say(p, "no command given; see manager --help");
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return help_all();
    if (strcmp(argv[1], "--version") == 0) return printf("manager %s\n", MANAGER_VERSION) > 0 ? EXIT_OK : EXIT_FAILED;
    if (strcmp(argv[1], "help") == 0) return help_asked(p, argc - 2, argv + 2);
    if (!command_find(p, argv[1])) return EXIT_USAGE;
    if (help_wanted(argc - 2, argv + 2)) return help_one(p->command);
    int code = parse_arguments(p, argc - 2, argv + 2);
    if (!code && p->opt.config) code = config_read(p);
    if (!code) code = parse_words(p);
    return code ? code : p->command->run(p);
}

static void options_free(options *o)
{
    list *const lists[] = { &o->partitions, &o->instances, &o->tags, &o->add, &o->remove, &o->reweigh, &o->kept };
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) list_free(lists[i]);
}

int main(int argc, char **argv)
{
    int keeper = mgr_keeper_main(argc, argv);
    if (keeper >= 0) return keeper;
    program p;
    memset(&p, 0, sizeof p);
    p.log_fd = -1;
    int code = dispatch(&p, argc, argv);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        say(&p, "cannot write to stdout: %s", strerror(errno));
        if (!code) code = EXIT_FAILED;
    }
    options_free(&p.opt);
    return code;
}
