/* [json]: what is accepted and refused, at which byte, and what it is read as. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

#include <sys/mman.h>

static mgr__heap heap;

/* A copy whose last byte is the last before a page that cannot be read. */
static mgr__str guarded(mgr__str s)
{
    enum { BYTES = 1 << 18 };
    static char *page;
    if (!page) {
        page = (char *)mmap(NULL, BYTES + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED || mprotect(page + BYTES, 65536, PROT_NONE) != 0) { perror("guard page"); exit(1); }
    }
    if (s.len > BYTES) { printf("text too long for the guard page\n"); exit(1); }
    char *at = page + BYTES - s.len;
    if (s.len) memcpy(at, s.at, s.len);
    return mgr__str_make(at, s.len);
}

/* Reads whatever comes, by its type, and writes it again. */
static void copy(mgr__json *j, mgr__jw *jw, mgr__buf *scratch)
{
    mgr__str key;
    switch (mgr__json_peek(j)) {
    case MGR__JSON_NULL: if (mgr__json_null(j)) mgr__jw_null(jw); break;
    case MGR__JSON_BOOL: mgr__jw_bool(jw, mgr__json_bool(j)); break;
    case MGR__JSON_STRING: mgr__jw_str(jw, mgr__json_string(j, scratch)); break;
    case MGR__JSON_NUMBER: mgr__jw_raw(jw, mgr__json_raw(j)); break;
    case MGR__JSON_ARRAY:
        mgr__json_array(j);
        mgr__jw_array(jw);
        while (mgr__json_item(j)) copy(j, jw, scratch);
        mgr__jw_array_end(jw);
        break;
    case MGR__JSON_OBJECT:
        mgr__json_object(j);
        mgr__jw_object(jw);
        while (mgr__json_key(j, &key)) { mgr__jw_key_str(jw, key); copy(j, jw, scratch); }
        mgr__jw_object_end(jw);
        break;
    case MGR__JSON_NONE: mgr__json_skip(j); break;
    }
}

static bool rewrite(mgr__json *j, mgr__str text, mgr__buf *out)
{
    mgr__buf scratch;
    mgr__jw jw;
    mgr__buf_init(&scratch, &heap, 1u << 20);
    mgr__jw_init(&jw, out);
    mgr__json_init(j, text);
    copy(j, &jw, &scratch);
    bool good = mgr__json_end(j);
    mgr__buf_free(&scratch);
    return good;
}

static bool skip_all(mgr__json *j, mgr__str text)
{
    mgr__json_init(j, text);
    mgr__json_skip(j);
    return mgr__json_end(j);
}

static void caret(mgr__str text, const mgr__json *j, size_t wanted)
{
    printf("%.*s\n%*s^ %s (at %zu, wanted at %zu)\n", (int)text.len, text.at, (int)j->error_at, "",
           j->error ? j->error : "accepted", j->error_at, wanted);
    test__bad = true;
}

#define ACCEPT SIZE_MAX

/* Skipped, and read piece by piece: both must find the same fault at the same byte. */
static void expect(mgr__str plain, size_t error_at)
{
    mgr__json j;
    mgr__buf out;
    mgr__str text = guarded(plain);
    bool good = skip_all(&j, text);
    if (good != (error_at == ACCEPT) || (!good && j.error_at != error_at)) caret(text, &j, error_at);
    CHECK(good == !j.error);
    mgr__buf_init(&out, &heap, 1u << 20);
    good = rewrite(&j, text, &out);
    if (good != (error_at == ACCEPT) || (!good && j.error_at != error_at)) caret(text, &j, error_at);
    mgr__buf_free(&out);
}

typedef struct sample { const char *text; size_t error_at; } sample;

static const sample samples[] = {
    { "null", ACCEPT }, { "true", ACCEPT }, { "false", ACCEPT }, { " \t\r\n0 \t\r\n", ACCEPT },
    { "[]", ACCEPT }, { "{}", ACCEPT }, { "[ ]", ACCEPT }, { "{ }", ACCEPT }, { "[[],{},[{}]]", ACCEPT },
    { "{\"a\":1,\"b\":[true,null,\"x\"],\"a\":{}}", ACCEPT }, { "{ \"a\" : 1 , \"b\" : 2 }", ACCEPT },
    { "{\"\":0}", ACCEPT }, { "\"\"", ACCEPT }, { "\"\x7f\"", ACCEPT },
    { "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\uD834\\udd1e\\u0000\"", ACCEPT },
    { "-0", ACCEPT }, { "0.0", ACCEPT }, { "-1.5e+10", ACCEPT }, { "1E-2", ACCEPT }, { "1e5", ACCEPT }, { "0e0", ACCEPT },
    { "123456789012345678901234567890", ACCEPT },
    { "", 0 }, { "  ", 2 }, { "\xef\xbb\xbf""1", 0 }, { "nul", 3 }, { "nulL", 3 }, { "truE", 3 }, { "fals", 4 }, { "True", 0 },
    { "NaN", 0 }, { "Infinity", 0 }, { "'a'", 0 }, { "a", 0 }, { "]", 0 }, { ",", 0 }, { "//\n1", 0 }, { "\f1", 0 },
    { "1 2", 2 }, { "null,", 4 }, { "{}x", 2 }, { "[]]", 2 }, { "\"a\"\"b\"", 3 }, { "truefalse", 4 },
    { "[", 1 }, { "[1", 2 }, { "[1,", 3 }, { "[1,]", 3 }, { "[,1]", 1 }, { "[1 2]", 3 }, { "[1,,2]", 3 }, { "[1}", 2 }, { "[:]", 1 },
    { "{", 1 }, { "{1:2}", 1 }, { "{\"a\"", 4 }, { "{\"a\":", 5 }, { "{\"a\":}", 5 }, { "{\"a\" 1}", 5 }, { "{\"a\":1", 6 },
    { "{\"a\":1,", 7 }, { "{\"a\":1,}", 7 }, { "{,}", 1 }, { "{\"a\":1]", 6 }, { "{\"a\":1 \"b\":2}", 7 }, { "{a:1}", 1 },
    { "[{\"a\":[1,{\"b\":tru}]}]", 17 },
    { "01", 1 }, { "-01", 2 }, { "00", 1 }, { "-", 1 }, { "-a", 1 }, { "+1", 0 }, { ".5", 0 }, { "1.", 2 }, { "1.e5", 2 },
    { "1e", 2 }, { "1e+", 3 }, { "1ex", 2 }, { "0x10", 1 }, { "1.5.5", 3 }, { "[-]", 2 }, { "1_0", 1 },
    { "\"", 1 }, { "\"abc", 4 }, { "\"a\nb\"", 2 }, { "\"\t\"", 1 }, { "\"\x1f\"", 1 }, { "\"\\", 2 }, { "\"\\x\"", 2 }, { "\"\\'\"", 2 },
    { "\"\\U0041\"", 2 }, { "\"\\u", 3 }, { "\"\\u00", 5 }, { "\"\\u004\"", 6 }, { "\"\\u00g0\"", 5 }, { "\"\\u+041\"", 3 },
    { "\"\\ud800\"", 1 }, { "\"\\udc00\"", 1 }, { "\"\\udfff\"", 1 }, { "\"\\udbff\"", 1 }, { "\"\\udc00\\udc00\"", 1 }, { "\"\\ud800\\udbff\"", 1 },
    { "\"\\ud800\\ue000\"", 1 }, { "\"\\udbff\\udfff\\ud800\\udc00\\ud7ff\\ue000\"", ACCEPT }, { "\"ab\\udbff\\n\"", 3 }, { "\"\\ud800\\ud800\"", 1 }, { "\"\\ud800\\u0041\"", 1 },
    { "\"\\udc00\\ud800\"", 1 }, { "\"\\ud800\\u", 9 }, { "\"\\ud800x\"", 1 }, { "\"\\ud834\\udd1e\\udd1e\"", 13 },
    { "{\"\\ud800\":1}", 2 }, { "{\"a\\q\":1}", 4 },
};

TEST(accepted_and_refused)
{
    for (size_t i = 0; i < MGR__COUNT(samples); i++) expect(mgr__str_of(samples[i].text), samples[i].error_at);
    expect(mgr__str_make("\"a\0b\"", 5), 2);
    expect(mgr__str_make("1\0", 2), 1);
    expect(mgr__str_make("\0", 1), 0);
    expect(mgr__str_make(NULL, 0), 0);
}

/* Every prefix of a good text is refused where it ends, unless it is a shorter number. */
TEST(cut_short)
{
    static const char text[] = "{\"a\":[1.5e3,-2,true,false,null,{\"\\u00e9\\n\":\"\\ud834\\udd1e\xc3\xa9\"}],\"b\":{}}";
    for (size_t len = 0; len < sizeof text - 1; len++) {
        mgr__json j;
        mgr__str cut = guarded(mgr__str_make(text, len));
        CHECK(!skip_all(&j, cut));
        CHECK(j.error_at <= len);
        if (j.error_at != len) CHECK(strstr(j.error, "UTF-8") || strstr(j.error, "surrogate"));
    }
    expect(mgr__str_make(text, sizeof text - 1), ACCEPT);
}

TEST(utf8_boundaries)
{
    static const char *const good[] = {
        "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xec\xbf\xbf", "\xed\x80\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf3\xbf\xbf\xbf", "\xf4\x80\x80\x80", "\xf4\x8f\xbf\xbf" };
    static const char *const bad[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x7f", "\xc2\xc0", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xe1\x80", "\xe1\x80\x7f",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80", "\xf0\x90\x80\xc0", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
        "\xf8\x88\x80\x80\x80", "\xfe", "\xff" };
    char text[16];
    for (size_t i = 0; i < MGR__COUNT(good); i++) {
        snprintf(text, sizeof text, "\"%s\"", good[i]);
        expect(mgr__str_of(text), ACCEPT);
    }
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        snprintf(text, sizeof text, "\"a%s\"", bad[i]);
        expect(mgr__str_of(text), 2);
        expect(mgr__str_make(text, strlen(text) - 1), 2);
    }
}

/* Every code point, written as escapes, decodes to its UTF-8 and is written again as that. */
TEST(every_code_point)
{
    mgr__buf scratch;
    mgr__buf_init(&scratch, &heap, 4096);
    for (uint32_t c = 0; c <= 0x10ffff; c += c < 0x900 || (c > 0xf700 && c < 0x10900) ? 1 : 13) {
        char text[32];
        if (c >= 0xd800 && c <= 0xdfff) continue;
        if (c < 0x10000) snprintf(text, sizeof text, "\"\\u%04x\"", c);
        else snprintf(text, sizeof text, "\"\\u%04x\\u%04X\"", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
        mgr__json j;
        mgr__json_init(&j, mgr__str_of(text));
        mgr__buf_clear(&scratch);
        mgr__str s = mgr__json_string(&j, &scratch);
        const unsigned char *b = (const unsigned char *)s.at;
        uint32_t back = s.len == 1 ? b[0] : s.len == 2 ? (b[0] & 0x1fu) << 6 | (b[1] & 0x3fu)
            : s.len == 3 ? (b[0] & 0xfu) << 12 | (b[1] & 0x3fu) << 6 | (b[2] & 0x3fu)
            : (b[0] & 7u) << 18 | (b[1] & 0x3fu) << 12 | (b[2] & 0x3fu) << 6 | (b[3] & 0x3fu);
        if (!mgr__json_end(&j) || back != c || mgr__utf8_bytes(s) != s.len || s.at[s.len]) { printf("U+%04X\n", c); test__bad = true; }
    }
    mgr__buf_free(&scratch);
}

typedef struct number { const char *text; bool u64_good, i64_good; uint64_t u64; int64_t i64; } number;

TEST(integers)
{
    static const number numbers[] = {
        { "0", true, true, 0, 0 }, { "-0", true, true, 0, 0 }, { "7", true, true, 7, 7 }, { "-1", false, true, 0, -1 }, { "-9", false, true, 0, -9 },
        { "9223372036854775807", true, true, INT64_MAX, INT64_MAX }, { "9223372036854775808", true, false, (uint64_t)INT64_MAX + 1, 0 },
        { "-9223372036854775807", false, true, 0, -INT64_MAX }, { "-9223372036854775808", false, true, 0, INT64_MIN },
        { "-9223372036854775809", false, false, 0, 0 }, { "18446744073709551615", true, false, UINT64_MAX, 0 },
        { "18446744073709551616", false, false, 0, 0 }, { "18446744073709551620", false, false, 0, 0 }, { "184467440737095516150", false, false, 0, 0 },
        { "99999999999999999999", false, false, 0, 0 }, { "1.0", false, false, 0, 0 }, { "1e5", false, false, 0, 0 }, { "1E0", false, false, 0, 0 },
        { "\"1\"", false, false, 0, 0 }, { "null", false, false, 0, 0 }, { "true", false, false, 0, 0 }, { "[1]", false, false, 0, 0 },
    };
    for (size_t i = 0; i < MGR__COUNT(numbers); i++) {
        mgr__json j;
        mgr__json_init(&j, guarded(mgr__str_of(numbers[i].text)));
        CHECK(mgr__json_u64(&j) == numbers[i].u64);
        CHECK(mgr__json_end(&j) == numbers[i].u64_good);
        mgr__json_init(&j, guarded(mgr__str_of(numbers[i].text)));
        CHECK(mgr__json_i64(&j) == numbers[i].i64);
        if (mgr__json_end(&j) != numbers[i].i64_good) caret(j.text, &j, 0);
    }
    mgr__json j;
    mgr__json_init(&j, mgr__str_of("[1, 18446744073709551616]"));
    CHECK(mgr__json_array(&j) && mgr__json_item(&j));
    CHECK_INT(mgr__json_u64(&j), 1);
    CHECK(mgr__json_item(&j));
    CHECK_INT(mgr__json_u64(&j), 0);
    CHECK(!mgr__json_item(&j));
    CHECK_INT(j.error_at, 4);
    CHECK_STR(j.error, "the integer is out of range");
}

TEST(depth_and_size)
{
    static char text[100000];
    mgr__json j;
    memset(text, '[', sizeof text);
    expect(mgr__str_make(text, sizeof text), MGR__JSON_DEPTH_MAX);
    memset(text + MGR__JSON_DEPTH_MAX, ']', MGR__JSON_DEPTH_MAX);
    expect(mgr__str_make(text, 2 * MGR__JSON_DEPTH_MAX), ACCEPT);
    for (size_t i = 0; i < sizeof text - 4; i += 5) memcpy(text + i, "{\"\":[", 5);
    expect(mgr__str_make(text, sizeof text), MGR__JSON_DEPTH_MAX / 2 * 5);
    char *big = (char *)malloc(MGR_BODY_BYTES_MAX + 1);
    CHECK(big);
    if (!big) return;
    memset(big, ' ', MGR_BODY_BYTES_MAX + 1);
    big[0] = '1';
    CHECK(skip_all(&j, mgr__str_make(big, MGR_BODY_BYTES_MAX)));
    CHECK(!skip_all(&j, mgr__str_make(big, MGR_BODY_BYTES_MAX + 1)));
    CHECK_INT(j.error_at, MGR_BODY_BYTES_MAX);
    free(big);
}

TEST(keys_and_skipped_values)
{
    char text[1024], longest[300];
    mgr__json j;
    mgr__str key;
    size_t count = 0;
    memset(longest, 'k', sizeof longest);
    snprintf(text, sizeof text, "{\"plain\":{\"x\":[1,{\"y\":2}]},\"\\u0041\\n\":3,\"\\t%.255s\":4,\"\\t%.256s\":5,\"%.299s\":6,\"\":7}", longest, longest, longest);
    mgr__json_init(&j, guarded(mgr__str_of(text)));
    CHECK(mgr__json_object(&j));
    while (mgr__json_key(&j, &key)) {
        static const size_t lens[] = { 5, 2, 256, 0, 299, 0 };
        CHECK_INT(key.len, lens[count < 6 ? count : 5]);
        if (count == 1) CHECK(mgr__str_is(key, "A\n"));
        if (count > 2) CHECK_INT(mgr__json_u64(&j), count + 2);     /* the others are left to the next key */
        count++;
    }
    CHECK_INT(count, 6);
    CHECK(mgr__json_end(&j));

    mgr__json_init(&j, mgr__str_of(" [ [1, 2] , {\"a\": \"]\"} , 3 ]"));
    CHECK(mgr__json_array(&j) && mgr__json_item(&j) && mgr__json_item(&j));
    CHECK(mgr__str_is(mgr__json_raw(&j), "{\"a\": \"]\"}"));
    CHECK(mgr__json_item(&j) && !mgr__json_null(&j) && mgr__json_peek(&j) == MGR__JSON_NUMBER);
    CHECK_INT(mgr__json_i64(&j), 3);
    CHECK(!mgr__json_item(&j) && mgr__json_end(&j));
}

/* A reader that expects more than the text has gets errors, never an assertion or another's value. */
TEST(asked_for_what_is_not_there)
{
    mgr__json j;
    mgr__str key;
    mgr__buf scratch;
    mgr__buf_init(&scratch, &heap, 4096);
    mgr__json_init(&j, mgr__str_of("{\"a\":[1],\"b\":2}"));
    CHECK(mgr__json_object(&j) && mgr__json_key(&j, &key) && mgr__json_array(&j) && mgr__json_item(&j));
    CHECK_INT(mgr__json_u64(&j), 1);
    CHECK(!mgr__json_item(&j) && !j.error);
    CHECK_INT(mgr__json_u64(&j), 0);
    CHECK_STR(j.error, "a value is missing");
    CHECK_INT(j.error_at, 8);
    CHECK(!mgr__json_key(&j, &key) && !mgr__json_item(&j) && !mgr__json_object(&j) && !mgr__json_bool(&j) && !mgr__json_null(&j));
    CHECK_INT(mgr__json_string(&j, &scratch).len, 0);
    CHECK_INT(mgr__json_base64(&j, &scratch).len, 0);
    CHECK_INT(mgr__json_raw(&j).len, 0);
    CHECK(mgr__json_peek(&j) == MGR__JSON_NONE && !mgr__json_end(&j));
    CHECK_STR(j.error, "a value is missing");

    mgr__json_init(&j, mgr__str_of("[1]"));
    CHECK(!mgr__json_object(&j) && j.error_at == 0);
    mgr__json_init(&j, mgr__str_of("{\"a\":1}"));
    CHECK(mgr__json_object(&j) && !mgr__json_item(&j) && j.error);
    mgr__json_init(&j, mgr__str_of("[1]"));
    CHECK(mgr__json_array(&j) && !mgr__json_key(&j, &key) && j.error);
    mgr__json_init(&j, mgr__str_of("[]"));
    CHECK(mgr__json_array(&j) && !mgr__json_item(&j) && !mgr__json_item(&j) && j.error);
    mgr__json_init(&j, mgr__str_of("[1]"));
    CHECK(mgr__json_array(&j) && mgr__json_item(&j) && mgr__json_u64(&j) == 1 && !mgr__json_end(&j));
    CHECK_STR(j.error, "not read to its end");
    mgr__json_init(&j, mgr__str_of("1"));
    CHECK(!mgr__json_end(&j));
    mgr__json_init(&j, mgr__str_of(""));
    CHECK(!mgr__json_end(&j));
    mgr__json_init(&j, mgr__str_of("[}"));
    CHECK(mgr__json_array(&j) && !mgr__json_key(&j, &key));
    CHECK_STR(j.error, "not inside an object");
    mgr__json_init(&j, mgr__str_of("{]"));
    CHECK(mgr__json_object(&j) && !mgr__json_item(&j));
    CHECK_STR(j.error, "not inside an array");
    mgr__json_init(&j, mgr__str_of("1}"));
    CHECK(mgr__json_u64(&j) == 1 && !mgr__json_key(&j, &key));
    CHECK_STR(j.error, "not inside an object");
    mgr__json_init(&j, mgr__str_of("\"x\""));
    CHECK(!mgr__json_bool(&j) && j.error);
    mgr__json_init(&j, mgr__str_of("nope"));
    CHECK(!mgr__json_null(&j) && j.error && j.error_at == 1);
    mgr__buf_free(&scratch);
}

/* Every block that grows moves, and what it leaves behind is overwritten. */
static void *moving(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    void *to = new_bytes ? malloc(new_bytes) : NULL;
    (void)user;
    if (to && ptr) memcpy(to, ptr, old_bytes < new_bytes ? old_bytes : new_bytes);
    if (ptr) memset(ptr, 0xa5, old_bytes);
    free(ptr);
    return to;
}

enum { SEEN_MAX = 80 };

static void mixed_strings(mgr__buf *text, int count, int variant)
{
    mgr__jw jw;
    char line[32];
    mgr__jw_init(&jw, text);
    mgr__jw_array(&jw);
    for (int i = 0; i < count; i++) {
        snprintf(line, sizeof line, "line\n%d", i);
        switch ((i + variant) % 3) {
        case 0: mgr__jw_text(&jw, line); break;
        case 1: mgr__jw_raw(&jw, mgr__str_of("\"Y\\u0057I\\/YWJjYWJjYWJj\"")); break;   /* base64 and escaped */
        default: mgr__jw_text(&jw, "YWJj"); break;
        }
    }
    mgr__jw_array_end(&jw);
}

/* Views into the scratch stay where they are, however many follow, whatever room there was before. */
static void views_stay(int count, int variant, size_t before)
{
    mgr__str seen[SEEN_MAX];
    mgr_allocator allocator = { moving, NULL };
    mgr__heap moves = mgr__heap_make(&allocator);
    mgr__buf text, scratch;
    char wanted[32];
    mgr__buf_init(&text, &heap, 1u << 20);
    mgr__buf_init(&scratch, &moves, 1u << 20);
    mixed_strings(&text, count, variant);
    for (size_t i = 0; i < before; i++) mgr__buf_char(&scratch, '.');
    mgr__json j;
    mgr__json_init(&j, mgr__buf_view(&text));
    CHECK(mgr__json_array(&j));
    for (int i = 0; mgr__json_item(&j); i++) seen[i] = (i + variant) % 3 ? mgr__json_base64(&j, &scratch) : mgr__json_string(&j, &scratch);
    CHECK(mgr__json_end(&j));
    for (int i = 0; i < count; i++) {
        int kind = (i + variant) % 3;
        if (kind == 0) snprintf(wanted, sizeof wanted, "line\n%d", i);
        else snprintf(wanted, sizeof wanted, "%s", kind == 1 ? "ab?abcabcabc" : "abc");
        CHECK(seen[i].at >= scratch.at && seen[i].at + seen[i].len < scratch.at + scratch.len);
        CHECK_STR(seen[i].at, wanted);
        CHECK_INT(seen[i].len, strlen(wanted));
    }
    mgr__buf_free(&text);
    mgr__buf_free(&scratch);
}

TEST(scratch_stays)
{
    for (int count = 1; count <= SEEN_MAX; count += count < 12 ? 1 : 17)
        for (int variant = 0; variant < 3; variant++)
            for (size_t before = 0; before < 130; before++) views_stay(count, variant, before);
}

TEST(scratch_runs_out)
{
    mgr__json j;
    mgr__buf scratch;
    mgr__buf_init(&scratch, &heap, 8);
    mgr__json_init(&j, mgr__str_of("[\"plain\",\"esc\\naped\"]"));
    CHECK(mgr__json_array(&j) && mgr__json_item(&j));
    CHECK(mgr__str_is(mgr__json_string(&j, &scratch), "plain"));
    CHECK(mgr__json_item(&j));
    CHECK_INT(mgr__json_string(&j, &scratch).len, 0);
    CHECK(!mgr__json_end(&j));
    CHECK_INT(j.error_at, 9);
    mgr__buf_free(&scratch);
}

TEST(writer)
{
    mgr__buf out;
    mgr__jw jw;
    mgr__buf_init(&out, &heap, 4096);
    mgr__jw_init(&jw, &out);
    mgr__jw_object(&jw);
    mgr__jw_key(&jw, "a\"");
    mgr__jw_u64(&jw, UINT64_MAX);
    mgr__jw_key_str(&jw, mgr__str_of("b"));
    mgr__jw_array(&jw);
    mgr__jw_i64(&jw, INT64_MIN);
    mgr__jw_bool(&jw, true);
    mgr__jw_bool(&jw, false);
    mgr__jw_null(&jw);
    mgr__jw_array(&jw);
    mgr__jw_array_end(&jw);
    mgr__jw_object(&jw);
    mgr__jw_object_end(&jw);
    mgr__jw_raw(&jw, mgr__str_of("[ 1 ]"));
    mgr__jw_array_end(&jw);
    mgr__jw_key(&jw, "c");
    mgr__jw_str(&jw, mgr__str_make("\0\x01\x1f\b\f\n\r\t\\/\"\x7f", 12));
    mgr__jw_key(&jw, "d");
    mgr__jw_text(&jw, "\xc3\xa9\xed\xa0\x80x\xff");
    mgr__jw_key(&jw, "e");
    mgr__jw_str(&jw, mgr__str_make(NULL, 0));
    mgr__jw_object_end(&jw);
    CHECK_STR(mgr__buf_cstr(&out),
        "{\"a\\\"\":18446744073709551615,\"b\":[-9223372036854775808,true,false,null,[],{},[ 1 ]],"
        "\"c\":\"\\u0000\\u0001\\u001f\\b\\f\\n\\r\\t\\\\/\\\"\x7f\","
        "\"d\":\"\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdx\xef\xbf\xbd\",\"e\":\"\"}");
    expect(mgr__buf_view(&out), ACCEPT);
    mgr__buf_free(&out);
}

/* Any bytes at all become a valid text; valid ones come back as they were. */
TEST(written_is_read)
{
    mgr__rng rng = { 7 };
    mgr__buf out, again, scratch;
    mgr__buf_init(&out, &heap, 4096);
    mgr__buf_init(&again, &heap, 4096);
    mgr__buf_init(&scratch, &heap, 4096);
    for (int round = 0; round < 20000; round++) {
        char bytes[24];
        size_t len = mgr__rng_below(&rng, sizeof bytes);
        for (size_t i = 0; i < len; i++) bytes[i] = (char)mgr__rng_below(&rng, round % 2 ? 128 : 256);
        mgr__jw jw;
        mgr__json j;
        mgr__buf_clear(&out);
        mgr__buf_clear(&scratch);
        mgr__jw_init(&jw, &out);
        mgr__jw_str(&jw, mgr__str_make(bytes, len));
        mgr__json_init(&j, guarded(mgr__buf_view(&out)));
        mgr__str back = mgr__json_string(&j, &scratch);
        CHECK(mgr__json_end(&j));
        if (round % 2) CHECK(mgr__str_eq(back, mgr__str_make(bytes, len)));
    }
    for (size_t i = 0; i < MGR__COUNT(samples); i++) {
        mgr__json j;
        mgr__buf_clear(&out);
        mgr__buf_clear(&again);
        if (samples[i].error_at != ACCEPT) continue;
        CHECK(rewrite(&j, mgr__str_of(samples[i].text), &out));
        CHECK(rewrite(&j, mgr__buf_view(&out), &again));
        CHECK_STR(mgr__buf_cstr(&again), mgr__buf_cstr(&out));
    }
    mgr__buf_free(&out);
    mgr__buf_free(&again);
    mgr__buf_free(&scratch);
}

static bool decodes(mgr__str text, mgr__str wanted)
{
    mgr__buf out;
    mgr__buf_init(&out, &heap, 4096);
    mgr__buf_text(&out, "+");
    bool good = mgr__base64_decode(&out, guarded(text));
    good = good && mgr__str_eq(mgr__str_skip(mgr__buf_view(&out), 1), wanted);
    mgr__buf_free(&out);
    return good;
}

TEST(base64)
{
    static const char *const pairs[][2] = {     /* RFC 4648 10 */
        { "", "" }, { "f", "Zg==" }, { "fo", "Zm8=" }, { "foo", "Zm9v" }, { "foob", "Zm9vYg==" }, { "fooba", "Zm9vYmE=" }, { "foobar", "Zm9vYmFy" },
        { "\xff\xef\xbe", "/+++" } };
    static const char *const bad[] = { "Z", "Zg", "Zg=", "Zg===", "Zh==", "Zm9=", "Zm8", "=", "====", "Z===", "Zg==Zg==", "Zm=v", "Z=9v", "Zm9v\n", "Zm 9",
        " Zm9v", "Zm9v ", "Zm9-", "Zm9_", "Zm9\x80", "Zm9vZg=a", "Zg=g" };
    for (size_t i = 0; i < MGR__COUNT(pairs); i++) {
        mgr__buf out;
        mgr__buf_init(&out, &heap, 4096);
        mgr__base64_encode(&out, guarded(mgr__str_of(pairs[i][0])));
        CHECK_STR(mgr__buf_cstr(&out), pairs[i][1]);
        CHECK(decodes(mgr__str_of(pairs[i][1]), mgr__str_of(pairs[i][0])));
        mgr__buf_free(&out);
    }
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        mgr__buf out;
        mgr__buf_init(&out, &heap, 4096);
        mgr__buf_text(&out, "x");
        if (mgr__base64_decode(&out, guarded(mgr__str_of(bad[i])))) { printf("accepted: %s\n", bad[i]); test__bad = true; }
        CHECK_STR(mgr__buf_cstr(&out), "x");
        mgr__buf_free(&out);
    }
}

TEST(base64_every_ending)
{
    mgr__buf text, back;
    mgr__buf_init(&text, &heap, 4096);
    mgr__buf_init(&back, &heap, 4096);
    int good = 0;
    for (int a = 0; a < 256; a++)
        for (int b = 0; b < 256; b++) {
            char four[4] = { 'A', 'A', (char)a, (char)b };
            mgr__buf_clear(&text);
            mgr__buf_clear(&back);
            if (!mgr__base64_decode(&back, mgr__str_make(four, 4))) continue;
            mgr__base64_encode(&text, mgr__buf_view(&back));
            CHECK(mgr__str_eq(mgr__buf_view(&text), mgr__str_make(four, 4)));
            good++;
        }
    CHECK_INT(good, 64 * 64 + 16 + 1);
    for (size_t len = 0; len < 256; len++) {
        char bytes[256];
        for (size_t i = 0; i < len; i++) bytes[i] = (char)(i * 151 + len);
        mgr__buf_clear(&text);
        mgr__base64_encode(&text, guarded(mgr__str_make(bytes, len)));
        CHECK(decodes(mgr__buf_view(&text), mgr__str_make(bytes, len)));
    }
    mgr__buf_free(&text);
    mgr__buf_free(&back);
}

/* No request for memory may fail unseen. */
static void *stingy(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    int *left = (int *)user;
    (void)old_bytes;
    if (!new_bytes) { free(ptr); return NULL; }
    return (*left)-- > 0 ? realloc(ptr, new_bytes) : NULL;
}

TEST(out_of_memory)
{
    for (int nth = 0; nth < 20; nth++) {
        int left = nth;
        mgr_allocator allocator = { stingy, &left };
        mgr__heap poor = mgr__heap_make(&allocator);
        mgr__buf out, scratch;
        mgr__json j;
        mgr__jw jw;
        mgr__buf_init(&out, &poor, 4096);
        mgr__buf_init(&scratch, &poor, 4096);
        mgr__jw_init(&jw, &out);
        mgr__json_init(&j, mgr__str_of("[\"a\\n\",\"Zm9v\",\"Zm9\\u0076\"]"));
        mgr__jw_array(&jw);
        CHECK(mgr__json_array(&j));
        for (int i = 0; mgr__json_item(&j); i++) mgr__jw_str(&jw, i ? mgr__json_base64(&j, &scratch) : mgr__json_string(&j, &scratch));
        mgr__jw_array_end(&jw);
        bool good = mgr__json_end(&j) && !out.failed;
        CHECK(good == (left >= 0));
        if (good) CHECK_STR(mgr__buf_cstr(&out), "[\"a\\n\",\"foo\",\"foo\"]");
        mgr__buf_free(&out);
        mgr__buf_free(&scratch);
        if (good) return;
    }
    printf("20 allocations were not enough\n");
    test__bad = true;
}

int main(int argc, char **argv)
{
    heap = mgr__heap_make(NULL);
    RUN(accepted_and_refused);
    RUN(cut_short);
    RUN(utf8_boundaries);
    RUN(every_code_point);
    RUN(integers);
    RUN(depth_and_size);
    RUN(keys_and_skipped_values);
    RUN(asked_for_what_is_not_there);
    RUN(scratch_stays);
    RUN(scratch_runs_out);
    RUN(writer);
    RUN(written_is_read);
    RUN(base64);
    RUN(base64_every_ending);
    RUN(out_of_memory);
    return test__end();
}
