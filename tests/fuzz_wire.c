/* [wire] under libFuzzer: however an answer is cut up, it is the same answer, and
 * its body keeps to the limit. The first two bytes choose the cut and the kind. */
#define MANAGER_IMPLEMENTATION
#include "manager.h"

enum { BODY_MAX = 300 };

static mgr__heap heap;

#define MUST(condition) do { if (!(condition)) abort(); } while (0)

static mgr__wire_state play(mgr__wire *w, mgr__str in, size_t piece, bool head, bool closed, size_t *used, mgr__buf *body)
{
    mgr__wire_state state = MGR__WIRE_MORE;
    *used = 0;
    mgr__buf_init(body, &heap, BODY_MAX);
    mgr__wire_init(w, head);
    for (size_t at = 0; at < in.len && state == MGR__WIRE_MORE; at += piece) {
        size_t len = in.len - at < piece ? in.len - at : piece, taken;
        /* A copy of its own: reading past a piece is reading past a block. */
        char *copy = (char *)malloc(len);
        MUST(copy);
        memcpy(copy, in.at + at, len);
        state = mgr__wire_feed(w, mgr__str_make(copy, len), &taken, body);
        free(copy);
        MUST(taken <= len && (taken == len || state != MGR__WIRE_MORE));
        *used += taken;
    }
    if (closed) state = mgr__wire_eof(w);
    MUST(body->len <= BODY_MAX && (state == MGR__WIRE_BAD) == (w->error != NULL));
    return state;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mgr__wire a, b;
    mgr__buf body_a, body_b;
    size_t used_a, used_b;
    if (size < 2) return 0;
    heap = mgr__heap_make(NULL);
    mgr__str in = mgr__str_make((const char *)data + 2, size - 2);
    bool head = data[1] & 1, closed = data[1] & 2;
    mgr__wire_state one = play(&a, in, in.len ? in.len : 1, head, closed, &used_a, &body_a);
    mgr__wire_state two = play(&b, in, data[0] % 16 + 1u, head, closed, &used_b, &body_b);
    MUST(one == two && used_a == used_b && mgr__str_eq(mgr__buf_view(&body_a), mgr__buf_view(&body_b)));
    MUST(a.error == b.error && a.status == b.status && a.close == b.close && a.began == b.began);
    MUST(a.has_index == b.has_index && a.consul_index == b.consul_index && a.known_leader_false == b.known_leader_false);
    mgr__buf_free(&body_a);
    mgr__buf_free(&body_b);
    return 0;
}
