/* The contract of examples/devconsul.h: the same requests go to it and to a real
 * Consul agent, and the answers must agree once session ids, node names and indexes
 * are made comparable. Indexes become ranks within an answer: which of them are the
 * same, which is higher; what they mean later is shown by using them.
 *
 * Out of scope, as devconsul.h says: redirects of "//" and "..", the texts of JSON
 * errors, script checks, ACLs, several nodes. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "../examples/devconsul.h"
#include "test.h"

enum { ANSWER_BYTES_MAX = 1 << 20, VARS_MAX = 32, REQUEST_BYTES_MAX = 1 << 20, INDEXES_MAX = 4096 };

typedef struct var { char name[16], value[64]; } var;

typedef struct answer {
    int      status;
    char     type[64];
    bool     known_leader;
    uint64_t index;             /* X-Consul-Index, 0: absent */
    char    *body;
    char    *normal;            /* what is compared */
} answer;

typedef struct server {
    const char *name;
    pid_t    pid;
    int      port, fd, watch_fd, stop_fd;
    var      vars[VARS_MAX];
    size_t   var_count;
    answer   last;
} server;

static server real, ours;

/* ---- a small blocking client ---- */

static int dial(const server *s)
{
    struct sockaddr_in to;
    struct timeval limit = { 20, 0 };
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)s->port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (const struct sockaddr *)(const void *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static bool send_all(int fd, const char *bytes, size_t len)
{
    while (len) {
        ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);
        if (n <= 0) return false;
        bytes += n;
        len -= (size_t)n;
    }
    return true;
}

/* A header's value, "" if it is not there. */
static void header(const char *head, const char *name, char *to, size_t to_bytes)
{
    size_t len = strlen(name);
    to[0] = 0;
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        size_t i = 0;
        while (i < len && line[i] && (line[i] | 32) == (name[i] | 32)) i++;
        if (i < len || line[i] != ':') continue;
        const char *end = strstr(line, "\r\n");
        mgr__copy_text(to, to_bytes, mgr__str_make(line + len + 2, end ? (size_t)(end - line) - len - 2 : 0));
        return;
    }
}

static bool more(int fd, char *all, size_t *len)
{
    ssize_t n = recv(fd, all + *len, ANSWER_BYTES_MAX - 1 - *len, 0);
    if (n <= 0) return false;
    *len += (size_t)n;
    all[*len] = 0;
    return true;
}

/* Takes the chunk sizes out of `body`; false: not all here. */
static bool unchunk(char *body)
{
    char *from = body, *to = body;
    for (;;) {
        char *end = strstr(from, "\r\n");
        size_t size = end ? strtoul(from, NULL, 16) : 0;
        if (!end || strlen(end) < size + 4) return false;
        memmove(to, end + 2, size);
        to += size;
        from = end + 2 + size + 2;
        if (!size) break;
    }
    *to = 0;
    return true;
}

static bool body_whole(int fd, char *all, size_t *len, size_t head_len)
{
    char length[32], encoding[32];
    header(all, "content-length", length, sizeof length);
    header(all, "transfer-encoding", encoding, sizeof encoding);
    if (!encoding[0]) {
        while (*len < head_len + strtoul(length, NULL, 10)) if (!more(fd, all, len)) return false;
        return true;
    }
    while (!strstr(all + head_len, "0\r\n\r\n")) if (!more(fd, all, len)) return false;     /* no JSON here holds that */
    return unchunk(all + head_len);
}

static bool receive(int fd, answer *a)
{
    static char all[ANSWER_BYTES_MAX];
    char text[64];
    size_t len = 0;
    all[0] = 0;
    while (!strstr(all, "\r\n\r\n")) if (!more(fd, all, &len)) return false;
    size_t head_len = (size_t)(strstr(all, "\r\n\r\n") - all) + 4;
    if (!body_whole(fd, all, &len, head_len)) return false;
    free(a->body);
    a->body = strdup(all + head_len);
    all[head_len - 2] = 0;
    a->status = (int)strtol(all + 9, NULL, 10);
    header(all, "content-type", a->type, sizeof a->type);
    header(all, "x-consul-index", text, sizeof text);
    a->index = strtoull(text, NULL, 10);
    header(all, "x-consul-knownleader", text, sizeof text);
    a->known_leader = strcmp(text, "true") == 0;
    return a->body != NULL;
}

/* ---- answers made comparable ---- */

static bool is_index(mgr__str key) { return mgr__str_is(key, "CreateIndex") || mgr__str_is(key, "ModifyIndex"); }

static bool is_uuid(mgr__str s)
{
    return s.len == 36 && s.at[8] == '-' && s.at[13] == '-' && s.at[18] == '-' && s.at[23] == '-';
}

/* Ids that were kept become their names, others "uuid"; an index named in a text becomes N. */
static void normal_text(const server *s, mgr__buf *out, mgr__str text)
{
    static const char said[] = "modify index ";
    mgr__buf_char(out, '"');
    for (size_t i = 0; i < text.len; ) {
        mgr__str rest = mgr__str_skip(text, i), id = mgr__str_make(rest.at, rest.len < 36 ? 0 : 36);
        size_t v = 0;
        while (v < s->var_count && !mgr__str_is(id, s->vars[v].value)) v++;
        if (id.len && v < s->var_count) { mgr__buf_printf(out, "$%s", s->vars[v].name); i += 36; continue; }
        if (is_uuid(id)) { mgr__buf_text(out, "uuid"); i += 36; continue; }
        mgr__buf_char(out, text.at[i++]);
        if (i < sizeof said - 1 || memcmp(text.at + i - (sizeof said - 1), said, sizeof said - 1) != 0) continue;
        i += strspn(text.at + i, "0123456789");
        mgr__buf_char(out, 'N');
        if (strncmp(text.at + i, " != ", 4) != 0) continue;    /* a body is terminated */
        i += 4 + strspn(text.at + i + 4, "0123456789");
        mgr__buf_text(out, " != N");
    }
    mgr__buf_char(out, '"');
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Between brackets, sorted; frees the parts. */
static void join(mgr__buf *out, char **parts, size_t count, const char *brackets, bool sort)
{
    if (sort) qsort(parts, count, sizeof *parts, by_text);
    mgr__buf_char(out, brackets[0]);
    for (size_t i = 0; i < count; i++) {
        if (i) mgr__buf_char(out, ',');
        mgr__buf_text(out, parts[i]);
        free(parts[i]);
    }
    mgr__buf_char(out, brackets[1]);
}

/* Members in the order of their names, items too if the order means nothing;
 * an index as "#number#". */
static void normal_value(const server *s, mgr__json *j, mgr__buf *out, mgr__str name, bool unordered)
{
    enum { PARTS_MAX = 256 };
    char *parts[PARTS_MAX];
    size_t count = 0;
    mgr__buf scratch, part;
    mgr__str key = mgr__str_of("");
    mgr__json_type type = mgr__json_peek(j);
    mgr__buf_init(&scratch, out->heap, ANSWER_BYTES_MAX);
    mgr__buf_init(&part, out->heap, ANSWER_BYTES_MAX);
    if (type == MGR__JSON_OBJECT || type == MGR__JSON_ARRAY) {
        bool object = type == MGR__JSON_OBJECT;
        if (object) mgr__json_object(j);
        else mgr__json_array(j);
        while (count < PARTS_MAX && (object ? mgr__json_key(j, &key) : mgr__json_item(j))) {
            mgr__buf_clear(&part);
            if (object) mgr__buf_printf(&part, "%.*s:", (int)key.len, key.at);
            normal_value(s, j, &part, key, unordered);
            parts[count++] = strdup(mgr__buf_cstr(&part));
        }
        join(out, parts, count, object ? "{}" : "[]", object || unordered);
    } else if (type == MGR__JSON_STRING && mgr__str_is(name, "Node")) {
        mgr__json_skip(j);
        mgr__buf_text(out, "\"node\"");
    } else if (type == MGR__JSON_STRING) normal_text(s, out, mgr__json_string(j, &scratch));
    else if (type == MGR__JSON_NUMBER && is_index(name)) mgr__buf_printf(out, "#%llu#", (unsigned long long)mgr__json_u64(j));
    else mgr__buf_str(out, mgr__json_raw(j));
    mgr__buf_free(&scratch);
    mgr__buf_free(&part);
}

static int by_number(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

/* "#number#" becomes "#rank" among the indexes of this answer. */
static void rank_indexes(mgr__buf *out, const char *text, bool drop)
{
    static uint64_t seen[INDEXES_MAX];
    size_t count = 0, distinct = 0;
    for (const char *at = strchr(text, '#'); at && count < INDEXES_MAX; at = strchr(strchr(at + 1, '#') + 1, '#')) seen[count++] = strtoull(at + 1, NULL, 10);
    qsort(seen, count, sizeof *seen, by_number);
    for (size_t i = 0; i < count; i++) if (!i || seen[i] != seen[i - 1]) seen[distinct++] = seen[i];
    while (*text) {
        if (*text != '#') { mgr__buf_char(out, *text++); continue; }
        uint64_t index = strtoull(text + 1, NULL, 10);
        size_t rank = 0;
        while (rank < distinct && seen[rank] != index) rank++;
        if (drop) mgr__buf_text(out, index ? "#" : "#0");
        else mgr__buf_printf(out, "#%u", (unsigned)rank);
        text = strchr(text + 1, '#') + 1;
    }
}

/* How an answer is looked at. */
enum { EXACT = 0, UNORDERED = 1, NO_RANKS = 2, NO_TEXT = 4 };

static void normalise(server *s, int how)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf text, ranked;
    mgr__json j;
    answer *a = &s->last;
    mgr__buf_init(&text, &heap, ANSWER_BYTES_MAX);
    mgr__buf_init(&ranked, &heap, ANSWER_BYTES_MAX);
    mgr__buf_printf(&text, "%d %s leader=%d ", a->status, a->type, (int)a->known_leader);
    if (a->index) mgr__buf_printf(&text, "index=#%llu# ", (unsigned long long)a->index);
    if (strcmp(a->type, "application/json") == 0) {
        mgr__json_init(&j, mgr__str_of(a->body));
        normal_value(s, &j, &text, mgr__str_of(""), (how & UNORDERED) != 0);
        if (!mgr__json_end(&j)) mgr__buf_printf(&text, " (no JSON: %s)", j.error);
    } else if (!(how & NO_TEXT)) normal_text(s, &text, mgr__str_of(a->body));
    rank_indexes(&ranked, mgr__buf_cstr(&text), (how & NO_RANKS) != 0);
    free(a->normal);
    a->normal = strdup(mgr__buf_cstr(&ranked));
    mgr__buf_free(&text);
    mgr__buf_free(&ranked);
}

/* ---- one request to both ---- */

/* $NAME becomes what this server's answer was kept as. */
static void expand(const server *s, mgr__buf *out, const char *text)
{
    while (*text) {
        size_t v = 0;
        while (v < s->var_count && (*text != '$' || strncmp(text + 1, s->vars[v].name, strlen(s->vars[v].name)) != 0)) v++;
        if (v == s->var_count) { mgr__buf_char(out, *text++); continue; }
        mgr__buf_text(out, s->vars[v].value);
        text += 1 + strlen(s->vars[v].name);
    }
}

static bool put_request(const server *s, int fd, const char *method, const char *target, const char *body)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf all, expanded;
    mgr__buf_init(&all, &heap, REQUEST_BYTES_MAX);
    mgr__buf_init(&expanded, &heap, REQUEST_BYTES_MAX);
    expand(s, &expanded, body);
    mgr__buf_printf(&all, "%s ", method);
    expand(s, &all, target);
    mgr__buf_printf(&all, " HTTP/1.1\r\nHost: h\r\nContent-Length: %lu\r\n\r\n", (unsigned long)expanded.len);
    mgr__buf_str(&all, mgr__buf_view(&expanded));
    bool sent = !all.failed && !expanded.failed && send_all(fd, mgr__buf_cstr(&all), all.len);
    mgr__buf_free(&all);
    mgr__buf_free(&expanded);
    return sent;
}

static bool ask_one(server *s, const char *method, const char *target, const char *body)
{
    if (s->fd >= 0 && put_request(s, s->fd, method, target, body) && receive(s->fd, &s->last)) return true;
    if (s->fd >= 0) close(s->fd);
    s->fd = dial(s);
    return s->fd >= 0 && put_request(s, s->fd, method, target, body) && receive(s->fd, &s->last);
}

static void compare(int line, const char *what, int status, int how)
{
    normalise(&real, how);
    normalise(&ours, how);
    bool same = strcmp(real.last.normal, ours.last.normal) == 0;
    if (!same || real.last.status != status)
        printf("%s:%d: %s\n    consul:    %.1500s\n    devconsul: %.1500s\n", __FILE__, line, what, real.last.normal, ours.last.normal);
    CHECK(same);
    CHECK_INT(real.last.status, status);
}

static void ask_both(int line, int how, int status, const char *method, const char *target, const char *body)
{
    char what[256];
    snprintf(what, sizeof what, "%s %.60s %.160s", method, target, body);
    bool asked = ask_one(&real, method, target, body) && ask_one(&ours, method, target, body);
    if (!asked) printf("%s:%d: no answer to %s\n", __FILE__, line, what);
    CHECK(asked);
    if (asked) compare(line, what, status, how);
}

#define ASK(status, method, target, body)          ask_both(__LINE__, EXACT, status, method, target, body)
#define ASK_HOW(how, status, method, target, body) ask_both(__LINE__, how, status, method, target, body)

static void keep_one(server *s, const char *name, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(s->last.body, quoted);
    size_t v = 0;
    while (v < s->var_count && strcmp(s->vars[v].name, name) != 0) v++;
    CHECK(at != NULL && v < VARS_MAX);
    if (!at || v == VARS_MAX) return;
    at += strlen(quoted);
    while (*at == ' ' || *at == '"') at++;
    if (v == s->var_count) s->var_count++;
    mgr__copy_text(s->vars[v].name, sizeof s->vars[v].name, mgr__str_of(name));
    mgr__copy_text(s->vars[v].value, sizeof s->vars[v].value, mgr__str_make(at, strcspn(at, "\", \n}")));
}

/* What the last answers say under `key` first, to be written as $name from now on. */
static void keep(const char *name, const char *key) { keep_one(&real, name, key); keep_one(&ours, name, key); }

static void keep_index(const char *name)
{
    server *both[] = { &real, &ours };
    for (size_t i = 0; i < 2; i++) {
        char *was = both[i]->last.body;
        char text[64];
        snprintf(text, sizeof text, "\"X\": %llu", (unsigned long long)both[i]->last.index);
        both[i]->last.body = text;
        keep_one(both[i], name, "X");
        both[i]->last.body = was;
    }
}

static void session(const char *name, const char *body)
{
    ASK(200, "PUT", "/v1/session/create", body);
    keep(name, "ID");
}

static void pause_ms(int ms) { poll(NULL, 0, ms); }

/* ---- blocking queries, on a connection of their own ---- */

static void watch(const char *target)
{
    server *both[] = { &real, &ours };
    for (size_t i = 0; i < 2; i++) {
        if (both[i]->watch_fd >= 0) close(both[i]->watch_fd);
        both[i]->watch_fd = dial(both[i]);
        CHECK(both[i]->watch_fd >= 0 && put_request(both[i], both[i]->watch_fd, "GET", target, ""));
    }
}

/* 1: both have an answer within the time, 0: neither, -1: they differ. */
static int woken(int within_ms)
{
    struct pollfd fds[2];
    int64_t until_ms = dc__now_ms() + within_ms;
    bool woke[2];
    for (int i = 0; i < 2; i++) {
        fds[i].fd = i ? ours.watch_fd : real.watch_fd;
        fds[i].events = POLLIN;
        woke[i] = poll(&fds[i], 1, (int)mgr__max64(0, until_ms - dc__now_ms())) == 1;
    }
    return woke[0] == woke[1] ? woke[0] : -1;
}

static void watched(int line, int status, int how)
{
    bool got = receive(real.watch_fd, &real.last) && receive(ours.watch_fd, &ours.last);
    CHECK(got);
    if (got) compare(line, "a blocking query", status, how);
}

/* ---- the two servers ---- */

static int free_port(void)
{
    struct sockaddr_in at;
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(&at, 0, sizeof at);
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bool bound = fd >= 0 && bind(fd, (const struct sockaddr *)(const void *)&at, sizeof at) == 0
              && getsockname(fd, (struct sockaddr *)(void *)&at, &len) == 0;
    if (fd >= 0) close(fd);
    return bound ? ntohs(at.sin_port) : 0;
}

static void start_ours(void)
{
    int stop[2], ready[2];
    char text[32] = "";
    ours.name = "devconsul";
    ours.fd = ours.watch_fd = ours.stop_fd = -1;
    if (pipe(stop) != 0 || pipe(ready) != 0) return;
    fflush(stdout);
    ours.pid = fork();
    if (ours.pid == 0) {
        close(stop[1]);
        _exit(dc_serve("127.0.0.1:0", stop[0], ready[1]));
    }
    close(stop[0]);
    close(ready[1]);
    ours.stop_fd = stop[1];
    if (read(ready[0], text, sizeof text - 1) > 0) ours.port = (int)strtol(text, NULL, 10);
    close(ready[0]);
}

static bool consul_path(char *to, size_t to_bytes)
{
    FILE *f = popen("if [ -f tests/consul.sh ]; then sh tests/consul.sh; else sh consul.sh; fi 2>/dev/null", "r");
    bool got = f && fgets(to, (int)to_bytes, f);
    if (f) got = pclose(f) == 0 && got;
    if (got) to[strcspn(to, "\n")] = 0;
    return got;
}

static void run_consul(const char *program, const int ports[3])
{
    char http[16], rpc[16], serf[16];
    char *argv[] = { NULL, NULL, NULL, NULL, NULL, http, NULL, rpc, NULL, serf, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL };
    static const char *const words[] = { "consul", "agent", "-dev", "-node=contract", "-http-port", "", "-server-port", "",
        "-serf-lan-port", "", "-serf-wan-port", "-1", "-dns-port", "-1", "-grpc-port", "-1", "-hcl",
        "performance { raft_multiplier = 1 }", "-log-level", "err" };
    snprintf(http, sizeof http, "%d", ports[0]);
    snprintf(rpc, sizeof rpc, "%d", ports[1]);
    snprintf(serf, sizeof serf, "%d", ports[2]);
    for (size_t i = 0; i < MGR__COUNT(words); i++) if (!argv[i]) argv[i] = strdup(words[i]);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    for (int fd = 3; fd < 256; fd++) close(fd);     /* above all the pipe that keeps devconsul going */
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    execv(program, argv);
    _exit(127);
}

/* Up once a session can be made; every test is skipped if that never comes. */
static void start_real(void)
{
    char program[512];
    int ports[3] = { free_port(), free_port(), free_port() };
    real.name = "consul";
    real.fd = real.watch_fd = real.stop_fd = -1;
    if (!consul_path(program, sizeof program)) return;
    real.port = ports[0];
    fflush(stdout);
    real.pid = fork();
    if (real.pid == 0) run_consul(program, ports);
    for (int i = 0; real.pid > 0 && i < 200; i++) {
        if (ask_one(&real, "PUT", "/v1/session/create", "{\"Name\":\"probe\"}") && real.last.status == 200) {
            keep_one(&real, "PROBE", "ID");
            ask_one(&real, "PUT", "/v1/session/destroy/$PROBE", "");
            real.var_count = 0;
            return;
        }
        pause_ms(100);
    }
    real.port = 0;
}

static void stop_one(server *s, int signal_number)
{
    if (s->fd >= 0) close(s->fd);
    if (s->watch_fd >= 0) close(s->watch_fd);
    if (s->stop_fd >= 0) close(s->stop_fd);
    if (s->pid > 0 && signal_number) kill(s->pid, signal_number);
    if (s->pid > 0) waitpid(s->pid, NULL, 0);
    free(s->last.body);
    free(s->last.normal);
}

#define NEED_CONSUL if (!real.port) SKIP("no Consul to compare with")

/* ---- keys ---- */

TEST(missing_keys)
{
    NEED_CONSUL;
    ASK(404, "GET", "/v1/kv/none", "");
    ASK(404, "GET", "/v1/kv/none?recurse", "");
    ASK(404, "GET", "/v1/kv/none?keys", "");
    ASK(404, "GET", "/v1/kv/?recurse", "");
    ASK(404, "GET", "/v1/kv/none?raw", "");
    ASK(400, "GET", "/v1/kv/", "");
    ASK(400, "PUT", "/v1/kv/", "x");
    ASK(400, "DELETE", "/v1/kv/", "");
    ASK(404, "GET", "/v1/nonsense", "");
    ASK(404, "GET", "/nonsense", "");
}

TEST(put_get_delete)
{
    NEED_CONSUL;
    ASK(200, "PUT", "/v1/kv/a", "hello");
    ASK(200, "GET", "/v1/kv/a", "");
    ASK(200, "GET", "/v1/kv/a?raw", "");
    ASK(200, "GET", "/v1/kv/a?consistent", "");
    ASK(200, "GET", "/v1/kv/a?stale", "");
    ASK(200, "PUT", "/v1/kv/b?flags=7", "");
    ASK(200, "GET", "/v1/kv/b", "");
    ASK(200, "GET", "/v1/kv/b?raw", "");
    ASK(200, "PUT", "/v1/kv/a?cas=0", "no");
    ASK(200, "GET", "/v1/kv/a", "");
    keep("I", "ModifyIndex");
    ASK(200, "PUT", "/v1/kv/a?cas=$I", "yes");
    ASK(200, "PUT", "/v1/kv/a?cas=$I", "again");
    ASK(200, "GET", "/v1/kv/?recurse", "");
    ASK(200, "DELETE", "/v1/kv/a?cas=$I", "");
    ASK(200, "DELETE", "/v1/kv/a", "");
    ASK(200, "DELETE", "/v1/kv/a", "");
    ASK(404, "GET", "/v1/kv/a", "");
    ASK(200, "GET", "/v1/kv/b", "");
    ASK(200, "DELETE", "/v1/kv/?recurse", "");
    ASK(404, "GET", "/v1/kv/?recurse", "");
}

TEST(keys_and_separators)
{
    NEED_CONSUL;
    ASK(200, "PUT", "/v1/kv/d/x/y", "1");
    ASK(200, "PUT", "/v1/kv/d/x/z", "1");
    ASK(200, "PUT", "/v1/kv/d/z", "1");
    ASK(200, "GET", "/v1/kv/d/?keys", "");
    ASK(200, "GET", "/v1/kv/d/?keys&separator=/", "");
    ASK(200, "GET", "/v1/kv/d/?keys&separator=", "");
    ASK(200, "GET", "/v1/kv/d?recurse", "");
    ASK(200, "DELETE", "/v1/kv/d/x/?recurse", "");
    ASK(200, "GET", "/v1/kv/d/?recurse", "");
    ASK(200, "GET", "/v1/kv/d/?keys", "");
    ASK(404, "GET", "/v1/kv/d/x/?recurse", "");
}

/* A '%' in a key is its own: the URL encodes it once more. */
TEST(percent_in_keys)
{
    NEED_CONSUL;
    ASK(200, "PUT", "/v1/kv/e/a%2525b", "1");
    ASK(200, "PUT", "/v1/kv/e/a%25b", "2");
    ASK(200, "PUT", "/v1/kv/e/a%2Fb", "3");
    ASK(200, "PUT", "/v1/kv/e/%C3%A4%20", "4");
    ASK(200, "PUT", "/v1/kv/e/plus+", "5");
    ASK(200, "GET", "/v1/kv/e/?recurse", "");
    ASK(200, "GET", "/v1/kv/e/a%2525b", "");
    ASK(200, "PUT", "/v1/txn", "[{\"KV\":{\"Verb\":\"get\",\"Key\":\"e/a%25b\"}},{\"KV\":{\"Verb\":\"get\",\"Key\":\"e/\\u00e4 \"}},{\"KV\":{\"Verb\":\"get\",\"Key\":\"e/a/b\"}}]");
}

TEST(wrong_requests)
{
    NEED_CONSUL;
    ASK(500, "PUT", "/v1/kv/w?cas=abc", "x");
    ASK(500, "PUT", "/v1/kv/w?flags=abc", "x");
    ASK(500, "DELETE", "/v1/kv/w?cas=zz", "");
    ASK(400, "DELETE", "/v1/kv/w?cas=1&recurse=", "");
    ASK(400, "PUT", "/v1/kv/w?acquire=x&cas=1", "x");
    ASK(400, "GET", "/v1/kv/w?consistent&stale", "");
    ASK(400, "GET", "/v1/kv/w?index=abc", "");
    ASK(400, "GET", "/v1/kv/w?wait=abc", "");
    ASK(405, "POST", "/v1/kv/w", "");
    ASK(405, "GET", "/v1/txn", "");
    ASK(405, "GET", "/v1/session/create", "");
    ASK(405, "GET", "/v1/agent/check/pass/x", "");
    ASK(500, "PUT", "/v1/kv/w?acquire=nonsense", "x");
    ASK(500, "PUT", "/v1/kv/w?acquire=", "x");
    ASK(500, "PUT", "/v1/kv/w?acquire=8f8dd86e-42f9-24fe-aa6a-57d9d1752599", "x");
    ASK(200, "PUT", "/v1/kv/w?release=nonsense", "x");
}

TEST(a_body_too_large)
{
    NEED_CONSUL;
    char *body = (char *)malloc(DC_BODY_BYTES_MAX + 2);
    CHECK(body != NULL);
    if (!body) return;
    memset(body, 'x', DC_BODY_BYTES_MAX + 1);
    body[DC_BODY_BYTES_MAX] = 0;
    ASK(200, "PUT", "/v1/kv/large", body);
    body[DC_BODY_BYTES_MAX] = 'x';
    body[DC_BODY_BYTES_MAX + 1] = 0;
    ASK_HOW(NO_TEXT, 413, "PUT", "/v1/kv/large", body);
    free(body);
    ASK(200, "DELETE", "/v1/kv/large", "");
}

/* ---- sessions and locks ---- */

#define NEVER_MADE "8f8dd86e-42f9-24fe-aa6a-57d9d1752599"

TEST(session_lifecycle)
{
    NEED_CONSUL;
    session("S", "{\"Name\":\"one\",\"TTL\":\"10s\",\"LockDelay\":\"0s\",\"Behavior\":\"delete\"}");
    ASK(200, "GET", "/v1/session/info/$S", "");
    ASK(200, "PUT", "/v1/session/renew/$S", "");
    session("T", "{\"LockDelay\":\"1ms\",\"NodeChecks\":[\"serfHealth\"],\"ServiceChecks\":[]}");
    ASK_HOW(UNORDERED, 200, "GET", "/v1/session/list", "");
    ASK(200, "GET", "/v1/session/node/nobody", "");
    ASK(200, "GET", "/v1/session/info/$T?consistent", "");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "PUT", "/v1/session/destroy/$T", "");
    ASK(200, "GET", "/v1/session/info/$S", "");
    ASK(404, "PUT", "/v1/session/renew/$S", "");
    ASK(404, "PUT", "/v1/session/renew/" NEVER_MADE, "");
    ASK(500, "PUT", "/v1/session/renew/abc", "");
    ASK(400, "PUT", "/v1/session/renew/", "");
    ASK(500, "PUT", "/v1/session/destroy/abc", "");
    ASK(400, "PUT", "/v1/session/destroy/", "");
    ASK(400, "GET", "/v1/session/info/", "");
    ASK(200, "GET", "/v1/session/list", "");
}

TEST(sessions_refused)
{
    NEED_CONSUL;
    ASK(500, "PUT", "/v1/session/create", "{\"TTL\":\"5s\"}");
    ASK(500, "PUT", "/v1/session/create", "{\"TTL\":\"90000s\"}");
    ASK(500, "PUT", "/v1/session/create", "{\"TTL\":\"x\"}");
    ASK(400, "PUT", "/v1/session/create", "{\"LockDelay\":\"x\"}");
    ASK(500, "PUT", "/v1/session/create", "{\"Behavior\":\"foo\"}");
    ASK(500, "PUT", "/v1/session/create", "{\"Node\":\"other\"}");
    ASK(500, "PUT", "/v1/session/create", "{\"ServiceChecks\":[{\"ID\":\"no:such\"}]}");
    ASK(500, "PUT", "/v1/session/create", "{\"NodeChecks\":[\"nope\"]}");
    ASK_HOW(NO_TEXT, 400, "PUT", "/v1/session/create", "{nope");
}

TEST(sessions_by_default)
{
    NEED_CONSUL;
    session("S", "");
    ASK(200, "GET", "/v1/session/info/$S", "");
    session("T", "{\"LockDelay\":5,\"Unknown\":1,\"Name\":null}");
    ASK(200, "GET", "/v1/session/info/$T", "");
    session("U", "{\"LockDelay\":\"90s\",\"TTL\":\"1m30s\",\"Checks\":[]}");
    ASK(200, "GET", "/v1/session/info/$U", "");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "PUT", "/v1/session/destroy/$T", "");
    ASK(200, "PUT", "/v1/session/destroy/$U", "");
}

TEST(locks_through_urls)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"0s\"}");
    session("T", "{\"LockDelay\":\"0s\"}");
    ASK(200, "PUT", "/v1/kv/l?acquire=$S", "held");
    ASK(200, "PUT", "/v1/kv/l?acquire=$T", "mine");
    ASK(200, "PUT", "/v1/kv/l?acquire=$S", "held");
    ASK(200, "GET", "/v1/kv/l", "");
    ASK(200, "PUT", "/v1/kv/l", "plain");
    ASK(200, "GET", "/v1/kv/l", "");
    ASK(200, "PUT", "/v1/kv/l?release=$T", "free");
    ASK(200, "PUT", "/v1/kv/l?release=$S", "free");
    ASK(200, "GET", "/v1/kv/l", "");
    ASK(200, "PUT", "/v1/kv/l?release=$S", "free");
    ASK(200, "PUT", "/v1/kv/l?acquire=$T", "mine");     /* at once: no delay after a release */
    ASK(200, "DELETE", "/v1/kv/l", "");
    ASK(200, "PUT", "/v1/kv/l?acquire=$S", "new");
    ASK(200, "GET", "/v1/kv/l", "");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "PUT", "/v1/session/destroy/$T", "");
    ASK(200, "GET", "/v1/kv/l", "");
}

#define OP(verb, key, more)    "{\"KV\":{\"Verb\":\"" verb "\",\"Key\":\"" key "\"" more "}}"
#define BY(session)            ",\"Session\":\"" session "\""
#define VALUE(base64)          ",\"Value\":\"" base64 "\""
#define AT(index)              ",\"Index\":" index

/* Every verb as it succeeds: all at one index, values only from reads. */
TEST(transactions_that_succeed)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"0s\"}");
    ASK(200, "PUT", "/v1/txn", "[" OP("set", "t/1", VALUE("YQ==") ",\"Flags\":3") "," OP("get", "t/1", "") ","
        OP("cas", "t/2", VALUE("YQ==") AT("0")) "," OP("delete", "t/2", "") "," OP("delete", "t/2", "") ","
        OP("delete-tree", "t/zz", "") "," OP("check-not-exists", "t/3", "") "," OP("lock", "t/3", VALUE("Yg==") BY("$S")) ","
        OP("check-session", "t/3", BY("$S")) "," OP("get-tree", "t/", "") "," OP("delete-cas", "t/none", AT("9")) "]");
    ASK(200, "GET", "/v1/kv/t/?recurse", "");
    ASK(200, "GET", "/v1/kv/t/3", "");
    keep("I", "ModifyIndex");
    ASK(200, "PUT", "/v1/txn", "[" OP("check-index", "t/3", AT("$I")) "," OP("unlock", "t/3", VALUE("Yw==") BY("$S")) "]");
    ASK(200, "GET", "/v1/kv/t/?recurse", "");
    ASK(409, "PUT", "/v1/txn", "[" OP("check-index", "t/3", AT("$I")) "," OP("lock", "t/3", VALUE("Yw==") BY("$S")) "]");
    ASK(200, "PUT", "/v1/txn", "[" OP("delete", "t/3", "") "]");
    ASK(200, "PUT", "/v1/txn", "[" OP("delete-tree", "t/", "") "]");
    ASK(404, "GET", "/v1/kv/t/?recurse", "");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
}

TEST(identical_locks_leave_the_index)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"0s\"}");
    ASK(200, "PUT", "/v1/txn", "[" OP("lock", "i", VALUE("YQ==") BY("$S")) "]");
    keep("I", "ModifyIndex");
    ASK(200, "PUT", "/v1/txn", "[" OP("lock", "i", VALUE("YQ==") BY("$S")) "]");
    ASK(200, "PUT", "/v1/txn", "[" OP("check-index", "i", AT("$I")) "]");
    ASK(200, "PUT", "/v1/txn", "[" OP("lock", "i", VALUE("Yg==") BY("$S")) "]");
    ASK(409, "PUT", "/v1/txn", "[" OP("check-index", "i", AT("$I")) "]");
    ASK(200, "PUT", "/v1/txn", "[" OP("set", "i/2", VALUE("YQ==")) "," OP("set", "i/3", VALUE("YQ==")) "]");
    ASK(200, "PUT", "/v1/txn", "[" OP("set", "i/2", VALUE("YQ==")) "," OP("set", "i/3", VALUE("Yg==")) "]");
    ASK(200, "GET", "/v1/kv/i?recurse", "");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "GET", "/v1/kv/i?recurse", "");
}

/* Every verb as it fails: all failures are listed, nothing is applied. */
TEST(transactions_that_fail)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"0s\"}");
    session("T", "{\"LockDelay\":\"0s\"}");
    ASK(200, "PUT", "/v1/txn", "[" OP("lock", "f", VALUE("YQ==") BY("$S")) "]");
    ASK(409, "PUT", "/v1/txn", "[" OP("set", "f/new", VALUE("YQ==")) "," OP("lock", "f", BY("$T")) "," OP("unlock", "f", BY("$T")) ","
        OP("unlock", "f/none", BY("$T")) "," OP("lock", "f", BY(NEVER_MADE)) "," OP("lock", "f", BY("abc")) "," OP("lock", "f", "") ","
        OP("unlock", "f", "") "," OP("check-session", "f", BY("$T")) "," OP("check-session", "f/none", BY("$T")) ","
        OP("check-index", "f/none", AT("3")) "," OP("check-index", "f", AT("3")) "," OP("check-not-exists", "f", "") ","
        OP("cas", "f", AT("0")) "," OP("cas", "f", AT("1")) "," OP("cas", "f/none", AT("1")) "," OP("delete-cas", "f", AT("1")) ","
        OP("get", "f/none", "") "," OP("get-tree", "f/none", "") "]");
    ASK(200, "GET", "/v1/kv/f?recurse", "");
    ASK(409, "PUT", "/v1/txn", "[" OP("set", "f", VALUE("YQ==")) "," OP("set", "", "") "," OP("get-tree", "", "") "]");
    ASK(409, "PUT", "/v1/txn", "[" OP("nonsense", "f", "") "]");
    ASK(409, "PUT", "/v1/txn", "[" OP("get", "f/none", "") "]");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "PUT", "/v1/session/destroy/$T", "");
}

TEST(transactions_that_only_read)
{
    NEED_CONSUL;
    ASK(200, "PUT", "/v1/kv/r", "x");
    ASK(200, "PUT", "/v1/txn?consistent", "[" OP("get", "r", "") "," OP("check-not-exists", "r/none", "") "]");
    ASK(200, "PUT", "/v1/txn?stale", "[" OP("get-tree", "r", "") "]");
    ASK(200, "PUT", "/v1/txn", "[]");
    ASK(200, "PUT", "/v1/txn", "[" OP("get-tree", "r/none", "") "]");
}

TEST(transactions_refused)
{
    NEED_CONSUL;
    ASK(400, "PUT", "/v1/txn", "");
    ASK_HOW(NO_TEXT, 400, "PUT", "/v1/txn", "{}");
    ASK_HOW(NO_TEXT, 400, "PUT", "/v1/txn", "nojson");
    ASK(400, "PUT", "/v1/txn", "[" OP("set", "k", VALUE("!!")) "]");
    ASK(400, "PUT", "/v1/txn", "[" OP("set", "k", ",\"Nope\":1") "]");
    ASK_HOW(NO_TEXT, 400, "PUT", "/v1/txn", "[" OP("check-index", "k", AT("\"4\"")) "]");
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf body;
    mgr__buf_init(&body, &heap, 8192);
    for (int i = 0; i < 65; i++) mgr__buf_printf(&body, "%c%s", i ? ',' : '[', OP("get", "k", ""));
    mgr__buf_char(&body, ']');
    ASK(413, "PUT", "/v1/txn", mgr__buf_cstr(&body));
    mgr__buf_free(&body);
}

TEST(a_session_ends_and_its_keys_are_free)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"0s\"}");
    session("D", "{\"LockDelay\":\"0s\",\"Behavior\":\"delete\"}");
    ASK(200, "PUT", "/v1/txn", "[" OP("lock", "s/1", VALUE("YQ==") BY("$S")) "," OP("lock", "s/2", BY("$S")) "," OP("lock", "s/3", BY("$D")) "]");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "GET", "/v1/kv/s/?recurse", "");
    ASK(200, "PUT", "/v1/session/destroy/$D", "");
    ASK(200, "GET", "/v1/kv/s/?recurse", "");
}

TEST(lock_delay_after_destroy)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"700ms\"}");
    session("T", "{\"LockDelay\":\"0s\"}");
    ASK(200, "PUT", "/v1/kv/y?acquire=$S", "x");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    ASK(200, "PUT", "/v1/kv/y?acquire=$T", "x");
    ASK(409, "PUT", "/v1/txn", "[" OP("lock", "y", BY("$T")) "," OP("check-index", "none", AT("4")) "]");
    ASK(200, "PUT", "/v1/kv/y", "plain");
    pause_ms(900);
    ASK(200, "PUT", "/v1/kv/y?acquire=$T", "x");
    ASK(200, "GET", "/v1/kv/y", "");
    ASK(200, "PUT", "/v1/session/destroy/$T", "");
}

/* ---- blocking queries ---- */

TEST(a_query_wakes_for_its_prefix_only)
{
    NEED_CONSUL;
    session("S", "{\"LockDelay\":\"0s\"}");
    ASK(200, "PUT", "/v1/kv/q/a", "1");
    ASK(200, "GET", "/v1/kv/q/?recurse", "");
    keep_index("X");
    watch("/v1/kv/q/?recurse&index=$X&wait=30s");
    ASK(200, "PUT", "/v1/kv/r/neighbour", "1");
    ASK(200, "PUT", "/v1/kv/q", "1");
    CHECK_INT(woken(150), 0);
    ASK(200, "PUT", "/v1/kv/q/b?acquire=$S", "1");
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
    keep_index("X");
    watch("/v1/kv/q/?recurse&index=$X&wait=30s");
    CHECK_INT(woken(100), 0);
    ASK(200, "DELETE", "/v1/kv/q/a", "");
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
    keep_index("X");
    watch("/v1/kv/q/?recurse&index=$X&wait=30s");
    ASK(200, "PUT", "/v1/session/destroy/$S", "");
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
}

TEST(a_query_ends_with_its_wait)
{
    NEED_CONSUL;
    ASK(200, "PUT", "/v1/kv/w/a", "1");
    ASK(200, "GET", "/v1/kv/w/a", "");
    keep_index("X");
    ASK(200, "GET", "/v1/kv/w/a?index=$X&wait=200ms", "");
    ASK(200, "GET", "/v1/kv/w/a?index=99999999&wait=100ms", "");
    ASK(200, "GET", "/v1/kv/w/a?index=0&wait=10s", "");
    ASK(200, "GET", "/v1/kv/w/a?index=1&wait=10s", "");
    ASK(404, "GET", "/v1/kv/w/none?index=99999999&wait=100ms", "");
}

TEST(a_missing_key_wakes_when_it_comes)
{
    NEED_CONSUL;
    ASK(404, "GET", "/v1/kv/m/none", "");
    keep_index("X");
    watch("/v1/kv/m/none?index=$X&wait=30s");
    CHECK_INT(woken(100), 0);
    ASK(200, "PUT", "/v1/kv/m/none", "1");
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
}

/* ---- the agent, the catalogue, health ---- */

#define SERVICE "{\"ID\":\"s1\",\"Name\":\"svc\",\"Tags\":[\"a\",\"b\"],\"Address\":\"1.2.3.4\",\"Port\":80,\"Meta\":{\"k\":\"v\"}," \
                "\"Checks\":[{\"CheckID\":\"s1:ttl\",\"TTL\":\"2s\",\"Status\":\"passing\"},{\"CheckID\":\"s1:two\",\"Name\":\"second\",\"TTL\":\"50s\"}]}"
#define LOOSE (UNORDERED | NO_RANKS)

TEST(services_and_their_checks)
{
    NEED_CONSUL;
    ASK(200, "GET", "/v1/agent/services", "");
    ASK(200, "GET", "/v1/agent/checks", "");
    ASK(200, "PUT", "/v1/agent/service/register", SERVICE);
    pause_ms(100);                                      /* the agent tells the catalogue */
    ASK(200, "GET", "/v1/agent/services", "");
    ASK(200, "GET", "/v1/agent/checks", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/catalog/services", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/catalog/service/svc", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/catalog/service/none", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/service/svc", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/service/svc?passing", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/checks/svc", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/checks/none", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/node/none", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/state/any", "");
    ASK(200, "PUT", "/v1/agent/check/pass/s1:two?note=fine", "");
    ASK(200, "PUT", "/v1/agent/check/warn/s1:two?note=so+so", "");
    pause_ms(100);
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/checks/svc", "");
    ASK(200, "PUT", "/v1/agent/service/register", SERVICE);     /* once more: what was reported stays */
    pause_ms(100);
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/checks/svc", "");
    ASK(200, "PUT", "/v1/agent/check/update/s1:two", "{\"Status\":\"passing\",\"Output\":\"out\"}");
    ASK(400, "PUT", "/v1/agent/check/update/s1:two", "{\"Status\":\"bogus\"}");
    ASK(500, "PUT", "/v1/agent/check/update/none", "{\"Status\":\"passing\"}");
    ASK(500, "PUT", "/v1/agent/check/pass/none", "");
    ASK(500, "PUT", "/v1/agent/check/fail/serfHealth", "");
    ASK(200, "PUT", "/v1/agent/service/deregister/s1", "");
    ASK(200, "GET", "/v1/agent/checks", "");
    ASK(200, "GET", "/v1/agent/services", "");
}

TEST(checks_by_themselves)
{
    NEED_CONSUL;
    ASK(200, "PUT", "/v1/agent/check/register", "{\"ID\":\"c1\",\"Name\":\"c one\",\"TTL\":\"10s\",\"Notes\":\"n\",\"Status\":\"passing\"}");
    ASK(200, "GET", "/v1/agent/checks", "");
    pause_ms(100);
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/state/passing", "");
    ASK(200, "PUT", "/v1/agent/check/deregister/c1", "");
    ASK(200, "PUT", "/v1/agent/check/deregister/c1", "");
    ASK(500, "PUT", "/v1/agent/check/register", "{\"ID\":\"c3\",\"Name\":\"c\",\"TTL\":\"10s\",\"ServiceID\":\"nope\"}");
    ASK(400, "PUT", "/v1/agent/check/register", "{\"ID\":\"c3\",\"TTL\":\"10s\"}");
    ASK(400, "PUT", "/v1/agent/check/register", "{\"Name\":\"c3\"}");
    ASK(400, "PUT", "/v1/agent/check/register", "{\"Name\":\"c3\",\"TTL\":\"x\"}");
    ASK(400, "PUT", "/v1/agent/check/register", "{\"Name\":\"c3\",\"TTL\":\"10s\",\"Status\":\"bogus\"}");
    ASK(400, "PUT", "/v1/agent/check/register", "{\"Name\":\"c3\",\"TTL\":\"10s\",\"Nope\":1}");
    ASK(500, "PUT", "/v1/agent/check/register", "{\"Name\":\"c3\",\"Args\":[\"true\"],\"Interval\":\"10s\"}");
}

TEST(services_refused_and_by_default)
{
    NEED_CONSUL;
    ASK(400, "PUT", "/v1/agent/service/register", "{}");
    ASK(400, "PUT", "/v1/agent/service/register", "{\"Name\":\"x\",\"Nope\":1}");
    ASK(400, "PUT", "/v1/agent/service/register", "{\"Name\":\"x\",\"Checks\":[{\"CheckID\":\"z\"}]}");
    ASK(200, "PUT", "/v1/agent/service/register", "{\"Name\":\"x\",\"Check\":{\"TTL\":\"50s\"}}");
    ASK(200, "PUT", "/v1/agent/service/register", "{\"Name\":\"y\",\"Checks\":[{\"TTL\":\"50s\"},{\"TTL\":\"50s\"}]}");
    ASK(200, "GET", "/v1/agent/checks", "");
    ASK(200, "GET", "/v1/agent/services", "");
    pause_ms(100);
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/service/x", "");
    ASK(200, "PUT", "/v1/agent/service/register?replace-existing-checks=true", "{\"Name\":\"y\",\"Checks\":[{\"CheckID\":\"other\",\"TTL\":\"50s\"}]}");
    ASK(200, "GET", "/v1/agent/checks", "");
    ASK(200, "PUT", "/v1/agent/service/deregister/x", "");
    ASK(200, "PUT", "/v1/agent/service/deregister/y", "");
    ASK(200, "PUT", "/v1/agent/service/deregister/none", "");
    ASK(200, "PUT", "/v1/catalog/deregister", "{\"Node\":\"none\",\"ServiceID\":\"none\"}");
    ASK(500, "PUT", "/v1/catalog/deregister", "{}");
    ASK(400, "PUT", "/v1/catalog/deregister", "{\"Nope\":1}");
}

static void tied_session(void)
{
    ASK(200, "PUT", "/v1/agent/service/register", SERVICE);
    pause_ms(150);
    session("S", "{\"LockDelay\":\"0s\",\"TTL\":\"10s\",\"NodeChecks\":[\"serfHealth\"],\"ServiceChecks\":[{\"ID\":\"s1:ttl\"}]}");
    ASK(200, "GET", "/v1/session/info/$S", "");
    ASK(200, "PUT", "/v1/kv/tied?acquire=$S", "x");
    ASK(200, "GET", "/v1/kv/tied", "");
    keep_index("X");
    watch("/v1/kv/tied?index=$X&wait=30s");
}

TEST(a_ttl_check_ends_its_session)
{
    NEED_CONSUL;
    tied_session();
    CHECK_INT(woken(1000), 0);
    ASK(200, "PUT", "/v1/agent/check/warn/s1:ttl", "");
    CHECK_INT(woken(1300), 0);                          /* neither the warning nor the time before it */
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
    ASK(200, "GET", "/v1/session/info/$S", "");
    ASK(404, "PUT", "/v1/session/renew/$S", "");
    ASK(500, "PUT", "/v1/session/create", "{\"ServiceChecks\":[{\"ID\":\"s1:ttl\"}]}");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/checks/svc", "");
    ASK(200, "PUT", "/v1/agent/service/deregister/s1", "");
}

TEST(a_failed_check_ends_its_session)
{
    NEED_CONSUL;
    tied_session();
    ASK(200, "PUT", "/v1/agent/check/fail/s1:ttl?note=broken", "");
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
    ASK(200, "PUT", "/v1/agent/service/deregister/s1", "");
}

TEST(a_deregistered_service_ends_its_session)
{
    NEED_CONSUL;
    tied_session();
    ASK(200, "PUT", "/v1/agent/service/deregister/s1", "");
    CHECK_INT(woken(2000), 1);
    watched(__LINE__, 200, EXACT);
    ASK(200, "GET", "/v1/session/info/$S", "");
    ASK_HOW(LOOSE, 200, "GET", "/v1/health/checks/svc", "");
}

TEST(what_the_agent_says_of_itself)
{
    NEED_CONSUL;
    server *both[] = { &real, &ours };
    for (size_t i = 0; i < 2; i++) {
        CHECK(ask_one(both[i], "GET", "/v1/agent/self", ""));
        CHECK_INT(both[i]->last.status, 200);
        CHECK(strstr(both[i]->last.body, "\"NodeName\"") != NULL);
        CHECK(ask_one(both[i], "GET", "/v1/status/leader", ""));
        CHECK(strlen(both[i]->last.body) > 10);
        CHECK(ask_one(both[i], "GET", "/v1/status/peers", ""));
        CHECK(strstr(both[i]->last.body, "127.0.0.1:") != NULL);
    }
}

/* Bytes as no client of ours sends them: by themselves, in chunks, several requests at once. */
TEST(requests_in_pieces)
{
    if (!ours.port) SKIP("devconsul did not start");
    static const char bytes[] = "PUT /v1/kv/piece HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                                "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
                                "GET /v1/kv/piece?raw HTTP/1.1\r\nHost: h\r\n\r\n";
    answer a;
    memset(&a, 0, sizeof a);
    int fd = dial(&ours);
    for (size_t i = 0; i + 1 < sizeof bytes; i++) CHECK(send_all(fd, bytes + i, 1));
    CHECK(receive(fd, &a));
    CHECK_INT(a.status, 200);
    /* Both answers may have come at once: then the first read took the second too. */
    if (!strstr(a.body, "abcde")) CHECK(receive(fd, &a));
    CHECK(a.body && strstr(a.body, "abcde"));
    close(fd);
    static const char *const bad[] = { "nonsense\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "GET /%zz HTTP/1.1\r\n\r\n",
        "PUT /v1/kv/x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "PUT /v1/kv/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n" };
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        fd = dial(&ours);
        CHECK(send_all(fd, bad[i], strlen(bad[i])) && receive(fd, &a));
        CHECK_INT(a.status, 400);
        close(fd);
    }
    free(a.body);
}

/* The 201st connection is closed without a byte; the others go on. */
TEST(connections_are_bounded)
{
    if (!ours.port) SKIP("devconsul did not start");
    enum { MORE = 210 };
    int fds[MORE];
    char byte;
    size_t closed = 0;
    for (int i = 0; i < MORE; i++) fds[i] = dial(&ours);
    pause_ms(100);
    for (int i = 0; i < MORE; i++) closed += fds[i] >= 0 && recv(fds[i], &byte, 1, MSG_DONTWAIT) == 0;
    CHECK(closed >= 10 && closed < 20);
    for (int i = 0; i < MORE; i++) if (fds[i] >= 0) close(fds[i]);
    pause_ms(100);
    CHECK(ask_one(&ours, "GET", "/v1/status/leader", ""));
}

/* Serves on a Unix socket until its pipe ends, takes over a dead one's name, leaves nothing. */
TEST(a_unix_socket)
{
    struct sockaddr_un to;
    char address[80], text[16] = "";
    int stop[2], ready[2], status = -1;
    answer a;
    memset(&a, 0, sizeof a);
    memset(&to, 0, sizeof to);
    to.sun_family = AF_UNIX;
    snprintf(to.sun_path, sizeof to.sun_path, "/tmp/devconsul-%ld.sock", (long)getpid());
    snprintf(address, sizeof address, "unix://%.64s", to.sun_path);
    int stale = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(stale, (const struct sockaddr *)(const void *)&to, sizeof to) == 0);
    close(stale);
    CHECK(pipe(stop) == 0 && pipe(ready) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        close(stop[1]);
        _exit(dc_serve(address, stop[0], ready[1]));
    }
    close(stop[0]);
    close(ready[1]);
    CHECK(read(ready[0], text, sizeof text - 1) == 2);
    CHECK_STR(text, "0\n");
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(fd, (const struct sockaddr *)(const void *)&to, sizeof to) == 0);
    CHECK(put_request(&ours, fd, "GET", "/v1/status/peers", "") && receive(fd, &a));
    CHECK_INT(a.status, 200);
    CHECK_INT(dc_serve(address, -1, -1), EADDRINUSE);
    close(stop[1]);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(access(to.sun_path, F_OK) != 0);
    close(fd);
    close(ready[0]);
    free(a.body);
}

TEST(addresses_refused)
{
    static const char *const bad[] = { "", "127.0.0.1", "0.0.0.0:0", "10.0.0.1:8500", "127.0.0.1:x", "127.0.0.1:65536", "name:80" };
    for (size_t i = 0; i < MGR__COUNT(bad); i++) CHECK_INT(dc_serve(bad[i], -1, -1), EINVAL);
    CHECK_INT(dc_serve("unix:///no/such/folder/s", -1, -1), ENOENT);
}

int main(int argc, char **argv)
{
    start_ours();
    start_real();
    RUN(missing_keys);
    RUN(put_get_delete);
    RUN(keys_and_separators);
    RUN(percent_in_keys);
    RUN(wrong_requests);
    RUN(a_body_too_large);
    RUN(session_lifecycle);
    RUN(sessions_refused);
    RUN(sessions_by_default);
    RUN(locks_through_urls);
    RUN(transactions_that_succeed);
    RUN(identical_locks_leave_the_index);
    RUN(transactions_that_fail);
    RUN(transactions_that_only_read);
    RUN(transactions_refused);
    RUN(a_session_ends_and_its_keys_are_free);
    RUN(lock_delay_after_destroy);
    RUN(a_query_wakes_for_its_prefix_only);
    RUN(a_query_ends_with_its_wait);
    RUN(a_missing_key_wakes_when_it_comes);
    RUN(services_and_their_checks);
    RUN(checks_by_themselves);
    RUN(services_refused_and_by_default);
    RUN(a_ttl_check_ends_its_session);
    RUN(a_failed_check_ends_its_session);
    RUN(a_deregistered_service_ends_its_session);
    RUN(what_the_agent_says_of_itself);
    RUN(requests_in_pieces);
    RUN(connections_are_bounded);
    RUN(a_unix_socket);
    RUN(addresses_refused);
    stop_one(&ours, 0);
    stop_one(&real, SIGKILL);
    return test__end();
}
