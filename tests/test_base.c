/* [base]: memory that knows its sizes, buffers, arenas, names as keys, UTF-8, the
 * texts of results and events. Random bytes come from a fixed seed. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"
#include "test.h"

/* An allocator that checks what it is told, and can fail once. */
typedef struct ledger {
    struct { void *at; size_t bytes; } blocks[512];
    size_t count, calls, fail_at;       /* fail_at: 1 is the first call that wants memory; 0: never */
    bool   lied;                        /* a block's size was not what it was made with */
} ledger;

static void *ledger_resize(void *user, void *ptr, size_t old_bytes, size_t new_bytes)
{
    ledger *l = (ledger *)user;
    size_t at = 0;
    while (at < l->count && l->blocks[at].at != ptr) at++;
    if (ptr ? at == l->count || l->blocks[at].bytes != old_bytes : old_bytes != 0) l->lied = true;
    if (!new_bytes) {
        free(ptr);
        if (at < l->count) l->blocks[at] = l->blocks[--l->count];
        return NULL;
    }
    if (++l->calls == l->fail_at || l->count == MGR__COUNT(l->blocks)) return NULL;
    void *made = realloc(ptr, new_bytes);
    if (!made) return NULL;
    if (!ptr) at = l->count++;
    l->blocks[at].at = made;
    l->blocks[at].bytes = new_bytes;
    return made;
}

static mgr__heap ledger_heap(ledger *l, size_t fail_at)
{
    mgr_allocator allocator;
    memset(l, 0, sizeof *l);
    l->fail_at = fail_at;
    allocator.resize = ledger_resize;
    allocator.user = l;
    return mgr__heap_make(&allocator);
}

/* ---- memory ---- */

TEST(blocks_keep_their_content_and_grow_with_zeros)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 0);
    char *at = (char *)mgr__alloc(&heap, 10);
    CHECK(at && (uintptr_t)at % 16 == 0);
    for (int i = 0; i < 10; i++) { CHECK_INT(at[i], 0); at[i] = (char)(i + 1); }
    at = (char *)mgr__resize(&heap, at, 1000);
    for (int i = 0; i < 1000; i++) if (at[i] != (i < 10 ? i + 1 : 0)) { CHECK(!"content"); break; }
    at = (char *)mgr__resize(&heap, at, 5);
    CHECK_INT(at[4], 5);
    mgr__free(&heap, at);
    mgr__free(&heap, NULL);
    CHECK_INT(l.count, 0);
    CHECK(!l.lied);
}

TEST(a_failed_resize_leaves_the_old_block)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 2);
    char *at = (char *)mgr__alloc(&heap, 4);
    memcpy(at, "abc", 4);
    CHECK(!mgr__resize(&heap, at, 4000));
    CHECK_STR(at, "abc");
    mgr__free(&heap, at);
    CHECK_INT(l.count, 0);
    CHECK(!l.lied);
}

TEST(sizes_that_overflow_are_refused)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 0);
    CHECK(!mgr__alloc(&heap, SIZE_MAX));
    CHECK(!mgr__alloc(&heap, SIZE_MAX - 8));
    CHECK(!mgr__alloc_array(&heap, SIZE_MAX / 4, 8));
    CHECK(!mgr__alloc_array(&heap, (size_t)1 << (sizeof(size_t) * 4), (size_t)1 << (sizeof(size_t) * 4)));
    CHECK_INT(l.calls, 0);
}

TEST(arrays_double_or_stay)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 0);
    void *items = NULL;
    size_t cap = 0;
    for (size_t i = 0; i < 100; i++) {
        CHECK(mgr__grow(&heap, &items, &cap, i, sizeof(size_t)));
        ((size_t *)items)[i] = i;
    }
    CHECK_INT(cap, 128);
    CHECK_INT(((size_t *)items)[99], 99);
    l.fail_at = l.calls + 1;
    void *was = items;
    CHECK(!mgr__grow(&heap, &items, &cap, 128, sizeof(size_t)));
    CHECK(items == was && cap == 128);
    mgr__free(&heap, items);
    CHECK(!l.lied && l.count == 0);
}

TEST(the_default_allocator_serves)
{
    mgr_allocator none;
    memset(&none, 0, sizeof none);
    mgr__heap heap = mgr__heap_make(&none);
    char *text = mgr__dup(&heap, mgr__str_make("abcdef", 3));
    CHECK_STR(text, "abc");
    mgr__free(&heap, text);
}

/* ---- strings ---- */

TEST(views_compare_by_bytes)
{
    CHECK(mgr__str_eq(mgr__str_of(NULL), mgr__str_of("")));
    CHECK(mgr__str_is(mgr__str_make("abc", 2), "ab"));
    CHECK(!mgr__str_is(mgr__str_make("abc", 2), "abc"));
    CHECK(mgr__str_starts(mgr__str_of("abc"), "ab") && !mgr__str_starts(mgr__str_of("a"), "ab"));
    CHECK(mgr__str_order(mgr__str_of("a"), mgr__str_of("ab")) < 0);
    CHECK(mgr__str_order(mgr__str_of("b"), mgr__str_of("ab")) > 0);
    CHECK(mgr__str_order(mgr__str_of("\xff"), mgr__str_of("a")) > 0);      /* unsigned */
    CHECK_INT(mgr__str_order(mgr__str_of(""), mgr__str_of("")), 0);
}

TEST(copies_are_cut_and_terminated)
{
    char to[4];
    memset(to, 'x', sizeof to);
    mgr__copy_text(to, sizeof to, mgr__str_of("abcdef"));
    CHECK_STR(to, "abc");
    mgr__copy_text(to, sizeof to, mgr__str_of(""));
    CHECK_STR(to, "");
}

/* ---- buffers ---- */

TEST(a_buffer_holds_its_limit_and_not_a_byte_more)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 0);
    mgr__buf b;
    mgr__buf_init(&b, &heap, 5);
    CHECK_STR(mgr__buf_cstr(&b), "");
    mgr__buf_text(&b, "abc");
    mgr__buf_printf(&b, "%d", 12);
    CHECK(!b.failed);
    CHECK_STR(mgr__buf_cstr(&b), "abc12");
    mgr__buf_char(&b, 'x');
    CHECK(b.failed);
    CHECK_STR(mgr__buf_cstr(&b), "abc12");
    mgr__buf_free(&b);
    CHECK(!l.lied && l.count == 0);
}

TEST(a_buffer_s_failure_sticks_until_it_is_cleared)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 0);
    mgr__buf b;
    mgr__buf_init(&b, &heap, 4);
    mgr__buf_printf(&b, "%s", "too long");
    CHECK(b.failed);
    mgr__buf_text(&b, "a");     /* would fit: nothing may follow a hole */
    CHECK_INT(b.len, 0);
    mgr__buf_clear(&b);
    mgr__buf_text(&b, "a");
    CHECK(!b.failed);
    CHECK_STR(mgr__buf_cstr(&b), "a");
    mgr__buf_free(&b);
    CHECK_INT(l.count, 0);
}

TEST(a_buffer_out_of_memory_keeps_what_it_has)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 2);
    mgr__buf b;
    mgr__buf_init(&b, &heap, 10000);
    mgr__buf_text(&b, "abc");
    for (int i = 0; i < 100 && !b.failed; i++) mgr__buf_text(&b, "0123456789");
    CHECK(b.failed);
    CHECK(mgr__str_starts(mgr__buf_view(&b), "abc0123456789"));
    CHECK_INT(strlen(mgr__buf_cstr(&b)), b.len);
    mgr__buf_free(&b);
    CHECK(!l.lied && l.count == 0);
}

TEST(a_buffer_is_consumed_from_its_front)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf b;
    mgr__buf_init(&b, &heap, 100);
    mgr__buf_add(&b, "a\0b", 3);
    mgr__buf_consume(&b, 0);
    CHECK_INT(b.len, 3);
    mgr__buf_consume(&b, 2);
    CHECK_STR(mgr__buf_cstr(&b), "b");
    mgr__buf_consume(&b, 1);
    CHECK_INT(b.len, 0);
    mgr__buf_free(&b);
}

/* ---- arenas ---- */

TEST(arena_blocks_are_zeroed_aligned_and_never_move)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 0);
    mgr__arena arena;
    char *made[300];
    mgr__arena_init(&arena, &heap);
    for (size_t i = 0; i < 300; i++) {
        made[i] = (char *)mgr__arena_alloc(&arena, 1 + i * 7 % 90);
        CHECK(made[i] && (uintptr_t)made[i] % 16 == 0 && made[i][0] == 0);
        if (!made[i]) return;
        memset(made[i], (int)(i % 100) + 1, 1 + i * 7 % 90);
    }
    char *large = (char *)mgr__arena_alloc(&arena, 3 * MGR__ARENA_BLOCK);
    for (size_t i = 0; i < 3 * MGR__ARENA_BLOCK; i++) if (large[i]) { CHECK(!"zeroed"); break; }
    for (size_t i = 0; i < 300; i++) if (made[i][0] != (char)(i % 100 + 1) || made[i][i * 7 % 90] != (char)(i % 100 + 1)) CHECK(!"overwritten");
    CHECK_STR(mgr__arena_str(&arena, mgr__str_make("abc", 2)).at, "ab");
    mgr__arena_free(&arena);
    CHECK(!l.lied && l.count == 0);
}

TEST(an_arena_s_failure_sticks)
{
    ledger l;
    mgr__heap heap = ledger_heap(&l, 2);
    mgr__arena arena;
    mgr__arena_init(&arena, &heap);
    CHECK(mgr__arena_alloc(&arena, 100) != NULL);
    CHECK(!mgr__arena_alloc(&arena, MGR__ARENA_BLOCK));
    CHECK(arena.failed);
    l.fail_at = l.calls + 1;
    mgr__str s = mgr__arena_str(&arena, mgr__str_of("x"));       /* fits in what is left */
    CHECK_STR(s.at, "x");
    CHECK(arena.failed);
    mgr__arena_free(&arena);
    CHECK(!arena.failed && l.count == 0);
}

/* ---- names as keys ---- */

static bool escape_back(mgr__heap *heap, mgr__str name, mgr__buf *escaped)
{
    mgr__buf back;
    mgr__buf_init(escaped, heap, 4096);
    mgr__buf_init(&back, heap, 4096);
    mgr__key_escape(escaped, name);
    bool same = mgr__key_unescape(&back, mgr__buf_view(escaped)) && mgr__str_eq(mgr__buf_view(&back), name);
    mgr__buf_free(&back);
    return same;
}

TEST(every_byte_survives_a_key_and_none_is_special_in_it)
{
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__rng rng;
    rng.state = 42;
    for (int round = 0; round < 2000; round++) {
        char name[40];
        size_t len = 1 + mgr__rng_below(&rng, sizeof name);
        for (size_t i = 0; i < len; i++) name[i] = (char)mgr__rng_below(&rng, round % 2 ? 256 : 128);
        mgr__buf escaped;
        CHECK(escape_back(&heap, mgr__str_make(name, len), &escaped));
        for (size_t i = 0; i < escaped.len; i++) {
            unsigned char c = (unsigned char)escaped.at[i];
            if (!mgr__key_plain(c) && c != '%') { CHECK(!"a special byte in a key"); round = 2000; break; }
        }
        mgr__buf_free(&escaped);
    }
}

/* Injective: what differs stays different, and only one text stands for a name. */
TEST(keys_are_injective)
{
    static const char *const names[] = { "a", "A", "%41", "a/b", "a%2Fb", "a%2fb", "..", ".", "a.", "a ", "a+", "\xc3\xa9", "e", "%", "%%", "%25" };
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__buf texts[MGR__COUNT(names)];
    for (size_t i = 0; i < MGR__COUNT(names); i++) {
        CHECK(escape_back(&heap, mgr__str_of(names[i]), &texts[i]));
        for (size_t k = 0; k < i; k++) CHECK(!mgr__str_eq(mgr__buf_view(&texts[i]), mgr__buf_view(&texts[k])));
    }
    CHECK_STR(mgr__buf_cstr(&texts[3]), "a%2Fb");
    for (size_t i = 0; i < MGR__COUNT(names); i++) mgr__buf_free(&texts[i]);
}

TEST(what_escape_never_writes_is_refused)
{
    static const char *const bad[] = { "a/b", "a.b", "%", "%2", "%2f", "%GG", "%41", "a%5F", "a b", "%2F%", "\xc3", "a%2", "%-1", "%2D" };
    mgr__heap heap = mgr__heap_make(NULL);
    for (size_t i = 0; i < MGR__COUNT(bad); i++) {
        mgr__buf out;
        mgr__buf_init(&out, &heap, 100);
        if (mgr__key_unescape(&out, mgr__str_of(bad[i]))) { printf("\"%s\" was taken\n", bad[i]); CHECK(!"refused"); }
        mgr__buf_free(&out);
    }
    mgr__buf out;
    mgr__buf_init(&out, &heap, 2);
    CHECK(!mgr__key_unescape(&out, mgr__str_of("abc")));        /* longer than its buffer may be */
    mgr__buf_free(&out);
}

/* Whatever is accepted is what escape writes for the result: fuzzed around '%'. */
TEST(unescape_is_the_inverse_of_escape_only)
{
    static const char alphabet[] = "%%%0123456789ABCDEFabf_-/.Z";
    mgr__heap heap = mgr__heap_make(NULL);
    mgr__rng rng;
    size_t taken = 0;
    rng.state = 7;
    for (int round = 0; round < 20000; round++) {
        char text[9];
        mgr__buf name, again;
        size_t len = mgr__rng_below(&rng, 9);
        for (size_t i = 0; i < len; i++) text[i] = alphabet[mgr__rng_below(&rng, sizeof alphabet - 1)];
        mgr__buf_init(&name, &heap, 100);
        mgr__buf_init(&again, &heap, 100);
        if (mgr__key_unescape(&name, mgr__str_make(text, len))) {
            taken++;
            mgr__key_escape(&again, mgr__buf_view(&name));
            CHECK(mgr__str_eq(mgr__buf_view(&again), mgr__str_make(text, len)));
        }
        mgr__buf_free(&name);
        mgr__buf_free(&again);
    }
    CHECK(taken > 1000);
}

/* ---- UTF-8 and names ---- */

TEST(utf8_is_read_as_rfc_3629_says)
{
    static const struct { const char *text; size_t bytes; } rows[] = {
        { "a", 1 }, { "\x7f", 1 }, { "\xc2\x80", 2 }, { "\xdf\xbf", 2 }, { "\xe0\xa0\x80", 3 }, { "\xed\x9f\xbf", 3 }, { "\xee\x80\x80", 3 },
        { "\xef\xbf\xbf", 3 }, { "\xf0\x90\x80\x80", 4 }, { "\xf4\x8f\xbf\xbf", 4 },
        { "", 0 }, { "\x80", 0 }, { "\xbf", 0 }, { "\xc0\x80", 0 }, { "\xc1\xbf", 0 }, { "\xc2", 0 }, { "\xc2\x41", 0 }, { "\xe0\x9f\xbf", 0 },
        { "\xed\xa0\x80", 0 }, { "\xed\xbf\xbf", 0 }, { "\xe1\x80", 0 }, { "\xe1\x80\x41", 0 }, { "\xf0\x8f\xbf\xbf", 0 }, { "\xf4\x90\x80\x80", 0 },
        { "\xf5\x80\x80\x80", 0 }, { "\xff", 0 }, { "\xf1\x80\x80", 0 }, { "\xf1\x80\x80\x41", 0 }
    };
    for (size_t i = 0; i < MGR__COUNT(rows); i++) CHECK_INT(mgr__utf8_bytes(mgr__str_of(rows[i].text)), rows[i].bytes);
}

TEST(bad_names_are_told_apart)
{
    char longest[MGR_NAME_BYTES_MAX + 2];
    memset(longest, 'a', sizeof longest);
    CHECK_STR(mgr__name_fault(mgr__str_of("")), "is empty");
    CHECK(!mgr__name_fault(mgr__str_make(longest, MGR_NAME_BYTES_MAX)));
    CHECK_STR(mgr__name_fault(mgr__str_make(longest, MGR_NAME_BYTES_MAX + 1)), "is longer than MGR_NAME_BYTES_MAX bytes");
    CHECK_STR(mgr__name_fault(mgr__str_make("a\0b", 3)), "has a control character");
    CHECK_STR(mgr__name_fault(mgr__str_of("a\n")), "has a control character");
    CHECK_STR(mgr__name_fault(mgr__str_of("\x7f")), "has a control character");
    CHECK_STR(mgr__name_fault(mgr__str_of("a\xff")), "is not UTF-8");
    CHECK_STR(mgr__name_fault(mgr__str_of("\xed\xa0\x80")), "is not UTF-8");
    CHECK(!mgr__name_fault(mgr__str_of("../a b/\xc3\xa9%")));       /* ugly, and fine: keys are escaped */
}

/* ---- numbers ---- */

/* Vectors: a change here would tear every running cluster apart. */
TEST(hashes_never_change)
{
    CHECK_INT(mgr__mix64(0) == 0xe220a8397b1dcdafull, 1);       /* SplitMix64's first output for seed 0 */
    CHECK_INT(mgr__hash(mgr__str_of("")) == mgr__mix64(0xcbf29ce484222325ull), 1);
    CHECK_INT(mgr__hash(mgr__str_of("a")) == mgr__mix64(0xaf63dc4c8601ec8cull), 1);     /* FNV-1a of "a" */
    CHECK_INT(mgr__hash(mgr__str_of("foobar")) == mgr__mix64(0x85944171f73967e8ull), 1);
    CHECK(mgr__hash(mgr__str_make("\xff", 1)) != mgr__hash(mgr__str_make("\x7f", 1)));
}

TEST(jitter_stays_below_its_bound)
{
    mgr__rng rng;
    bool low = false, high = false;
    rng.state = 1;
    for (int i = 0; i < 2000; i++) {
        uint32_t got = mgr__rng_below(&rng, 10);
        CHECK(got < 10);
        low = low || got == 0;
        high = high || got == 9;
    }
    CHECK(low && high);
    CHECK_INT(mgr__rng_below(&rng, 0), 0);
    CHECK_INT(mgr__min64(-3, 2), -3);
    CHECK_INT(mgr__max64(-3, 2), 2);
}

/* ---- texts ---- */

TEST(results_have_distinct_texts_and_values)
{
    static const mgr_result all[] = {
#define RESULT_NAME(name, value, text) name,
        MGR_RESULT_LIST(RESULT_NAME)
#undef RESULT_NAME
    };
    for (size_t i = 0; i < MGR__COUNT(all); i++) {
        const char *text = mgr_result_text(all[i]);
        CHECK(text[0] && strcmp(text, "unknown result") != 0 && !strchr(text, '\n'));
        CHECK(i == 0 ? all[i] == MGR_OK : (int)all[i] < 0);
        for (size_t k = 0; k < i; k++) CHECK(strcmp(text, mgr_result_text(all[k])) != 0 && all[i] != all[k]);
    }
    CHECK_INT(MGR_OK, 0);
    CHECK_STR(mgr_result_text((mgr_result)-1000), "unknown result");
}

TEST(events_have_distinct_words)
{
    for (int i = 0; i < MGR__EVENT_COUNT; i++) {
        const char *word = mgr_event_word((mgr_event_kind)i);
        CHECK(word[0] && strcmp(word, "unknown") != 0);
        CHECK(strspn(word, "abcdefghijklmnopqrstuvwxyz-") == strlen(word));
        for (int k = 0; k < i; k++) CHECK(strcmp(word, mgr_event_word((mgr_event_kind)k)) != 0);
    }
    CHECK_STR(mgr_event_word(MGR__EVENT_COUNT), "unknown");
}

int main(int argc, char **argv)
{
    RUN(blocks_keep_their_content_and_grow_with_zeros);
    RUN(a_failed_resize_leaves_the_old_block);
    RUN(sizes_that_overflow_are_refused);
    RUN(arrays_double_or_stay);
    RUN(the_default_allocator_serves);
    RUN(views_compare_by_bytes);
    RUN(copies_are_cut_and_terminated);
    RUN(a_buffer_holds_its_limit_and_not_a_byte_more);
    RUN(a_buffer_s_failure_sticks_until_it_is_cleared);
    RUN(a_buffer_out_of_memory_keeps_what_it_has);
    RUN(a_buffer_is_consumed_from_its_front);
    RUN(arena_blocks_are_zeroed_aligned_and_never_move);
    RUN(an_arena_s_failure_sticks);
    RUN(every_byte_survives_a_key_and_none_is_special_in_it);
    RUN(keys_are_injective);
    RUN(what_escape_never_writes_is_refused);
    RUN(unescape_is_the_inverse_of_escape_only);
    RUN(utf8_is_read_as_rfc_3629_says);
    RUN(bad_names_are_told_apart);
    RUN(hashes_never_change);
    RUN(jitter_stays_below_its_bound);
    RUN(results_have_distinct_texts_and_values);
    RUN(events_have_distinct_words);
    return test__end();
}
