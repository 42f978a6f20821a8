/* [json] under libFuzzer: skipping and reading agree on every text, what is read
 * and written again is valid and stays the same, base64 has one text per value. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"

static mgr__heap heap;

#define MUST(condition) do { if (!(condition)) abort(); } while (0)

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
    mgr__buf_init(&scratch, &heap, 1u << 24);
    mgr__buf_init(out, &heap, 1u << 24);
    mgr__jw_init(&jw, out);
    mgr__json_init(j, text);
    copy(j, &jw, &scratch);
    bool good = mgr__json_end(j);
    mgr__buf_free(&scratch);
    return good;
}

/* Asks for things in an order that the text has no say in. */
static void ask_at_random(mgr__str text)
{
    mgr__rng rng = { mgr__hash(text) };
    mgr__json j;
    mgr__buf scratch;
    mgr__str key;
    mgr__buf_init(&scratch, &heap, 1u << 24);
    mgr__json_init(&j, text);
    for (int i = 0; i < 64 && !j.error; i++) {
        switch (mgr__rng_below(&rng, 11)) {
        case 0: mgr__json_object(&j); break;
        case 1: mgr__json_array(&j); break;
        case 2: case 3: mgr__json_key(&j, &key); break;
        case 4: case 5: mgr__json_item(&j); break;
        case 6: mgr__json_string(&j, &scratch); break;
        case 7: mgr__json_base64(&j, &scratch); break;
        case 8: if (mgr__rng_below(&rng, 2)) mgr__json_u64(&j); else mgr__json_i64(&j); break;
        case 9: mgr__json_null(&j); break;
        default: mgr__json_raw(&j); break;
        }
        MUST(j.at <= text.len && j.depth <= MGR__JSON_DEPTH_MAX);
    }
    mgr__json_end(&j);
    MUST(!j.error || j.error_at <= text.len);
    mgr__buf_free(&scratch);
}

static void base64_is_one_to_one(mgr__str text)
{
    mgr__buf bytes, again;
    mgr__buf_init(&bytes, &heap, 1u << 24);
    mgr__buf_init(&again, &heap, 1u << 24);
    if (mgr__base64_decode(&bytes, text)) {
        mgr__base64_encode(&again, mgr__buf_view(&bytes));
        MUST(mgr__str_eq(mgr__buf_view(&again), text));
    }
    mgr__buf_free(&bytes);
    mgr__buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mgr__str text = mgr__str_make((const char *)data, size);
    mgr__json skipped, read, reread;
    mgr__buf once, twice;
    heap = mgr__heap_make(NULL);
    mgr__json_init(&skipped, text);
    mgr__json_skip(&skipped);
    bool good = mgr__json_end(&skipped);
    MUST(rewrite(&read, text, &once) == good);
    MUST(good || (skipped.error_at == read.error_at && read.error_at <= size));
    if (good) {
        MUST(rewrite(&reread, mgr__buf_view(&once), &twice));
        MUST(mgr__str_eq(mgr__buf_view(&once), mgr__buf_view(&twice)));
        mgr__buf_free(&twice);
    }
    mgr__buf_free(&once);
    ask_at_random(text);
    base64_is_one_to_one(text);
    return 0;
}
