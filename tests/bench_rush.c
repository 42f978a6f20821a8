/* [rush] against what others place with: how even, how much moves, how fast.
 *
 *     bench_rush [--quick] [OUTPUT.svg]
 *
 * Every algorithm gets the same names, hashes them with the same hash, and makes
 * the whole map. The rivals are the plain form of each, one draw a pair, written
 * here; that ours has vector kernels is part of what is compared. Seeds are fixed:
 * but for the times, two runs print the same.
 *
 * max-min   partitions of the fullest instance less those of the emptiest
 * movement  partitions that changed owner, divided by those that had to: what the
 *           ones who left had, or the one who joined has
 * time      for the whole map, divided by rendezvous', both the best of several, in turn
 *
 * "manager.h slots" is the policy of that name, while every slot is taken; with one
 * empty its figures stand in a table of their own, below the others.
 *
 * It is a test as well, and ends like one: [rush] has to be even to within one
 * partition, within one of a weighted quota, to move no more than the limits at the
 * end of this file, and to take no longer than the multiples of rendezvous' time
 * there. make test runs it --quick: the smaller sizes, without the table of
 * movement, which test_rush has. Times count only with BENCH_TIMES, as the Makefile
 * builds it: unoptimised, or under a sanitizer, they mean nothing. */
static int plain_only;
#define MGR__RUSH_HAS_AVX2() (!plain_only && __builtin_cpu_supports("avx2") != 0)
#define MANAGER_IMPLEMENTATION
#include "manager.h"

#include <stdio.h>
#include <time.h>

enum { OURS, SLOTS, RUSH_R, RENDEZVOUS, RING, BOUNDED, JUMP, MAGLEV, ALGORITHM_COUNT };
enum { JOIN, LEAVE_LAST, LEAVE_MIDDLE, LEAVE_TENTH, EVENT_COUNT };
enum { PARTS_MAX = 65536, SLOTS_MAX = 1001, NAME_BYTES = 24, WEIGHT_MAX = 10 };
enum { VIRTUAL_NODES = 100, POINTS_MAX = SLOTS_MAX * (VIRTUAL_NODES + 1) };     /* 1 for rounding, with weights */
enum { MAGLEV_SMALL = 65537, MAGLEV_LARGE = 655373 };   /* the sizes its paper measures: primes, 100 places each and more */
#define NOBODY 0xffffffffu

/* ---- a cluster ----
 * A slot is an instance's place in the order of joining, and stays its own: maps
 * are from partition to slot. */

typedef struct world {
    size_t          parts;
    size_t          slots, live_count;      /* ever joined, and still there */
    const char     *names[PARTS_MAX];
    const char     *ids[SLOTS_MAX];         /* by slot, like the next two */
    uint32_t        weight[SLOTS_MAX];
    mgr_subcluster  subclusters[SLOTS_MAX]; /* each of one server, so that any can leave: it then weighs 0 */
    uint32_t        order[SLOTS_MAX];       /* live slots; in the place of one that leaves comes the last */
    mgr_member      members[SLOTS_MAX];     /* the same as mgr_rush_map wants them */
    char            text[PARTS_MAX + SLOTS_MAX][NAME_BYTES];
    uint32_t        before[PARTS_MAX], after[PARTS_MAX];
    uint32_t        gone[SLOTS_MAX];
    uint64_t        hash[SLOTS_MAX];        /* from here scratch; this one by place in order */
    double          share[SLOTS_MAX];
    uint32_t        load[SLOTS_MAX], stride[SLOTS_MAX];
    uint64_t        points[POINTS_MAX], spare[POINTS_MAX];
    uint32_t        table[MAGLEV_LARGE];
} world;

static const char *name_put(char *at, const char *kind, unsigned seed, size_t n)
{
    uint64_t number = (uint64_t)seed << 20 | n;
    memcpy(at, kind, 5);
    for (int digit = 0; digit < 12; digit++) at[5 + digit] = "0123456789abcdef"[number >> (44 - 4 * digit) & 15];
    at[17] = 0;
    return at;
}

/* All that changes with the seed; and the weights. */
static void world_name(world *w, unsigned seed, size_t slots, bool weighted)
{
    mgr__rng rng;
    rng.state = mgr__mix64(seed);
    for (size_t x = 0; x < w->parts; x++) w->names[x] = name_put(w->text[x], "part-", seed, x);
    for (size_t s = 0; s < slots; s++) {
        w->ids[s] = name_put(w->text[PARTS_MAX + s], "host-", seed, s);
        w->weight[s] = weighted ? 1 + mgr__rng_below(&rng, WEIGHT_MAX) : 1;
    }
}

/* The first `slots` have joined, `gone` of them have left again, in that order. */
static void world_set(world *w, size_t slots, const uint32_t *gone, size_t gone_count)
{
    w->slots = w->live_count = slots;
    for (size_t s = 0; s < slots; s++) {
        w->order[s] = (uint32_t)s;
        w->subclusters[s].server_count = 1;
        w->subclusters[s].weight = w->weight[s];
    }
    for (size_t n = 0; n < gone_count; n++) {
        size_t at = 0;
        while (w->order[at] != gone[n]) at++;
        w->order[at] = w->order[--w->live_count];
        w->subclusters[gone[n]].weight = 0;
    }
    for (size_t i = 0; i < w->live_count; i++) {
        w->members[i].id = w->ids[w->order[i]];
        w->members[i].weight = w->weight[w->order[i]];
    }
}

/* ---- the algorithms ---- */

static uint64_t hash_of(const char *name) { return mgr__hash(mgr__str_of(name)); }

static void hash_members(world *w)
{
    for (size_t i = 0; i < w->live_count; i++) w->hash[i] = hash_of(w->members[i].id);
}

static void must(mgr_result result)
{
    if (result != MGR_OK) { fprintf(stderr, "bench_rush: [rush] returns %d\n", (int)result); exit(2); }
}

static void map_ours(world *w, uint32_t *owner)
{
    must(mgr_rush_map(w->names, w->parts, w->members, w->live_count, 1, owner));
    for (size_t x = 0; x < w->parts; x++) owner[x] = w->order[owner[x]];
}

/* An instance's slot is its place in the order of joining, as in a world. */
static void map_slots(world *w, uint32_t *owner)
{
    for (size_t i = 0; i < w->live_count; i++) w->load[i] = w->order[i] + 1;
    must(mgr_rush_slots(w->names, w->parts, w->members, w->load, w->live_count, NULL, 0, owner));
    for (size_t x = 0; x < w->parts; x++) owner[x] = w->order[owner[x]];
}

static void map_rush_r(world *w, uint32_t *owner)
{
    for (size_t x = 0; x < w->parts; x++)
        must(mgr_rush_locate(hash_of(w->names[x]), w->subclusters, w->slots, 1, owner + x));
}

static void map_rendezvous(world *w, uint32_t *owner)
{
    hash_members(w);
    for (size_t x = 0; x < w->parts; x++) {
        uint64_t h = hash_of(w->names[x]), best = 0;
        size_t at = 0;
        for (size_t i = 0; i < w->live_count; i++) {
            uint64_t draw = mgr__mix64(h ^ w->hash[i]);
            if (draw > best) { best = draw; at = i; }
        }
        owner[x] = w->order[at];
    }
}

/* artanh's series, to 8 digits. Not the C library's: some want -lm for it, and
 * nothing but the compiler is to be needed. */
static double log2_of(double x)
{
    double e = 0;
    while (x >= 2) { x /= 2; e++; }
    while (x < 1) { x *= 2; e--; }
    double s = (x - 1) / (x + 1), t = s * s;
    return e + 2.885390081777927 * s * (1 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9 + t * (1.0 / 11 + t / 13))))));
}

/* An exponentially distributed number divided by the weight: the least wins. */
static void map_rendezvous_weighted(world *w, uint32_t *owner)
{
    hash_members(w);
    for (size_t i = 0; i < w->live_count; i++) w->share[i] = 1.0 / w->members[i].weight;
    for (size_t x = 0; x < w->parts; x++) {
        uint64_t h = hash_of(w->names[x]);
        double best = 1e9;
        for (size_t i = 0; i < w->live_count; i++) {
            double u = (double)((mgr__mix64(h ^ w->hash[i]) >> 32) + 1) / 4294967296.0, score = -log2_of(u) * w->share[i];
            if (score < best) { best = score; owner[x] = w->order[i]; }
        }
    }
}

/* A point is place << 32 | slot, sorted by place only, so byte by byte from 32. */
static void sort_points(uint64_t *points, uint64_t *spare, size_t count)
{
    for (unsigned shift = 32; shift < 64; shift += 8) {
        size_t from[257] = { 0 };
        for (size_t n = 0; n < count; n++) from[(points[n] >> shift & 255) + 1]++;
        for (size_t b = 0; b < 256; b++) from[b + 1] += from[b];
        for (size_t n = 0; n < count; n++) spare[from[points[n] >> shift & 255]++] = points[n];
        uint64_t *swap = points; points = spare; spare = swap;
    }
}

/* A hundred points for the mean weight. Returns how many. */
static size_t ring_make(world *w)
{
    size_t count = 0;
    uint64_t weights = 0;
    for (size_t i = 0; i < w->live_count; i++) weights += w->members[i].weight;
    for (size_t i = 0; i < w->live_count; i++) {
        uint64_t id = hash_of(w->members[i].id);
        uint64_t nodes = (VIRTUAL_NODES * w->live_count * w->members[i].weight + weights / 2) / weights;
        for (uint64_t n = 0; n < (nodes ? nodes : 1); n++)
            w->points[count++] = (mgr__mix64(id + n) & 0xffffffff00000000u) | w->order[i];
    }
    sort_points(w->points, w->spare, count);
    return count;
}

/* The first point at or after the hash, around the end. */
static size_t ring_find(const uint64_t *points, size_t count, uint64_t h)
{
    size_t low = 0, high = count;
    h &= 0xffffffff00000000u;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (points[middle] < h) low = middle + 1;
        else high = middle;
    }
    return low < count ? low : 0;
}

static void map_ring(world *w, uint32_t *owner)
{
    size_t count = ring_make(w);
    for (size_t x = 0; x < w->parts; x++)
        owner[x] = (uint32_t)w->points[ring_find(w->points, count, hash_of(w->names[x]))];
}

/* Bound 0: nobody takes more than the mean, rounded up; who is full is passed over. */
static void map_bounded(world *w, uint32_t *owner)
{
    size_t count = ring_make(w), capacity = (w->parts + w->live_count - 1) / w->live_count;
    memset(w->load, 0, w->slots * sizeof *w->load);
    for (size_t x = 0; x < w->parts; x++) {
        size_t at = ring_find(w->points, count, hash_of(w->names[x]));
        while (w->load[(uint32_t)w->points[at]] == capacity) at = at + 1 < count ? at + 1 : 0;
        owner[x] = (uint32_t)w->points[at];
        w->load[owner[x]]++;
    }
}

/* From each bucket that was the partition's when it was the newest straight to the
 * next such one, which after b is j or later with probability (b + 1) / j. */
static void map_jump(world *w, uint32_t *owner)
{
    for (size_t x = 0; x < w->parts; x++) {
        uint64_t h = hash_of(w->names[x]);
        size_t bucket = 0;
        for (double next = 0; next < (double)w->live_count; h++) {
            bucket = (size_t)next;
            next = (double)(bucket + 1) * 4294967296.0 / (double)((mgr__mix64(h) >> 32) + 1);
        }
        owner[x] = w->order[bucket];
    }
}

/* In turn each instance takes the next free place of its own order of all places. */
static void map_maglev(world *w, uint32_t *owner)
{
    size_t filled = 0, size = w->live_count * 100 < MAGLEV_SMALL ? MAGLEV_SMALL : MAGLEV_LARGE;
    hash_members(w);
    for (size_t n = 0; n < size; n++) w->table[n] = NOBODY;
    for (size_t i = 0; i < w->live_count; i++) {
        w->load[i] = (uint32_t)(w->hash[i] % size);
        w->stride[i] = (uint32_t)(mgr__mix64(w->hash[i]) % (size - 1) + 1);
    }
    for (size_t i = 0; filled < size; i = i + 1 < w->live_count ? i + 1 : 0) {
        size_t at = w->load[i];
        while (w->table[at] != NOBODY) { at += w->stride[i]; if (at >= size) at -= size; }
        w->table[at] = w->order[i];
        w->load[i] = (uint32_t)at;
        filled++;
    }
    for (size_t x = 0; x < w->parts; x++) owner[x] = w->table[hash_of(w->names[x]) % size];
}

typedef struct algorithm {
    const char *name, *colour;
    void (*map)(world *w, uint32_t *owner);
    void (*map_weighted)(world *w, uint32_t *owner);    /* NULL: not compared */
} algorithm;

static const algorithm algorithms[ALGORITHM_COUNT] = {
    { "manager.h",        "#c1121f", map_ours,       map_ours },
    { "manager.h slots",  "#e76f51", map_slots,      NULL },
    { "RUSH_R",           "#8c4fb3", map_rush_r,     map_rush_r },
    { "rendezvous",       "#0b6fb8", map_rendezvous, map_rendezvous_weighted },
    { "ring, 100 nodes",  "#2a8a3e", map_ring,       map_ring },
    { "ring, bound 0",    "#d98200", map_bounded,    NULL },
    { "jump",             "#6b4a2b", map_jump,       NULL },
    { "Maglev",           "#444444", map_maglev,     NULL }
};

/* ---- measuring ---- */

typedef struct score {
    double spread, spread_worst;            /* max-min */
    double moved[EVENT_COUNT], least[EVENT_COUNT], ms;
} score;

typedef struct cell { uint32_t parts, members; char title[24]; score scores[ALGORITHM_COUNT]; } cell;

enum { EVEN, QUOTA, MOVEMENT, TIME, TIME_WEIGHTED, CHECK_COUNT };

typedef struct bench { bool quick, failed[CHECK_COUNT]; unsigned seed; } bench;    /* seed: the next; no two measurements share names */

static void fail(bench *b, int check, const char *what, uint32_t parts, uint32_t members, double got, double limit)
{
    printf("%u x %u: %s is %.3f, the limit %.3f\n", (unsigned)parts, (unsigned)members, what, got, limit);
    b->failed[check] = true;
}

/* max-min; or with weights the largest distance of anybody's load from its quota,
 * parts w_i / W. Whole numbers until the last division. */
static double unevenness(world *w, const uint32_t *owner, bool weighted)
{
    double weights = 0, most = -1e18, least = 1e18;
    memset(w->load, 0, w->slots * sizeof *w->load);
    for (size_t x = 0; x < w->parts; x++) w->load[owner[x]]++;
    for (size_t i = 0; i < w->live_count; i++) weights += w->members[i].weight;
    for (size_t i = 0; i < w->live_count; i++) {
        double over = w->load[w->order[i]] * weights - (double)w->parts * w->members[i].weight;
        if (over > most) most = over;
        if (over < least) least = over;
    }
    return (!weighted ? most - least : most > -least ? most : -least) / weights;
}

/* Who goes: neither the first nor the last, where there are others; or a tenth. */
static size_t event_gone(int event, uint32_t count, mgr__rng *rng, uint32_t *gone)
{
    if (event == JOIN) return 0;
    gone[0] = event == LEAVE_LAST ? count - 1 : count > 2 ? 1 + mgr__rng_below(rng, count - 2) : 0;
    if (event != LEAVE_TENTH || count < 20) return 1;
    for (uint32_t s = 0; s < count; s++) gone[s] = s;
    for (uint32_t n = 0; n < count / 10; n++) {
        uint32_t k = n + mgr__rng_below(rng, count - n), slot = gone[k];
        gone[k] = gone[n]; gone[n] = slot;
    }
    return count / 10;
}

/* From `members` to what comes after the event. rng: who goes. */
static void change(world *w, uint32_t members, int event, const algorithm *a, mgr__rng *rng, double *moved, double *least)
{
    size_t leaving = event_gone(event, members, rng, w->gone);
    *moved = *least = 0;
    world_set(w, members + (event == JOIN), w->gone, leaving);
    a->map(w, w->after);
    for (size_t x = 0; x < w->parts; x++) {
        *moved += w->before[x] != w->after[x];
        *least += !w->subclusters[w->before[x]].weight || w->after[x] >= members;
    }
}

static unsigned seeds_for(const bench *b, double pairs, unsigned most)
{
    double count = (b->quick ? 1e6 : 1e7) / pairs;
    return count < 5 ? 5 : count > most ? most : (unsigned)count;
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static double time_map(void (*map)(world *, uint32_t *), world *w, unsigned repeats)
{
    double from = now_ms();
    for (unsigned n = 0; n < repeats; n++) map(w, w->before);
    return (now_ms() - from) / repeats;
}

static void measure_seed(bench *b, cell *c, world *w, int a, double share)
{
    score *s = &c->scores[a];
    mgr__rng rng;
    rng.state = mgr__mix64(b->seed);        /* the same ones go for each algorithm */
    world_set(w, c->members, NULL, 0);
    double took = time_map(algorithms[a].map, w, 1), spread = unevenness(w, w->before, false), moved, least;
    if (s->ms <= 0 || took < s->ms) s->ms = took;
    s->spread += spread * share;
    if (spread > s->spread_worst) s->spread_worst = spread;
    for (int event = 0; event < EVENT_COUNT; event++) {
        change(w, c->members, event, algorithms + a, &rng, &moved, &least);
        s->moved[event] += moved;
        s->least[event] += least;
        double now = unevenness(w, w->after, false);
        if (now > spread) spread = now;
    }
    if (a <= SLOTS && spread > 1) fail(b, EVEN, a == OURS ? "max-min" : "max-min of slots", c->parts, c->members, spread, 1);
    for (int event = 0; a == SLOTS && event < EVENT_COUNT; event++)
        if (s->moved[event] > s->least[event])
            fail(b, MOVEMENT, "movement of slots", c->parts, c->members, s->moved[event] / s->least[event], 1);
}

/* In turn, and the best of each: what else the machine does falls on all alike.
 * Where a map takes long, those made for the other columns are enough. */
static void measure_times(const bench *b, cell *c, world *w)
{
    unsigned repeats[ALGORITHM_COUNT], rounds = c->parts > 20000 ? 0 : b->quick ? 7 : 15;
    world_set(w, c->members, NULL, 0);
    for (int a = 0; a < ALGORITHM_COUNT; a++) repeats[a] = (unsigned)(0.5 / (c->scores[a].ms + 0.0005)) + 1;
    for (unsigned n = 0; n < rounds * ALGORITHM_COUNT; n++) {
        unsigned a = n % ALGORITHM_COUNT;
        double ms = time_map(algorithms[a].map, w, repeats[a]);
        if (ms < c->scores[a].ms) c->scores[a].ms = ms;
    }
}

static void print_cell(const cell *c)
{
    printf("\n%-18s%6s %6s  %7s %7s %7s %7s  %7s %10s\n", c->title, "max-min", "worst", "join", "last", "middle", "10 %", "time", "ms");
    for (int a = 0; a < ALGORITHM_COUNT; a++) {
        const score *s = &c->scores[a];
        printf("  %-15s %7.1f %6.0f ", algorithms[a].name, s->spread, s->spread_worst);
        for (int event = 0; event < EVENT_COUNT; event++) printf(" %7.2f", s->moved[event] / s->least[event]);
        printf("  %7.2f %10.4f\n", s->ms / c->scores[RENDEZVOUS].ms, s->ms);
    }
}

static void run_cell(bench *b, cell *c, world *w)
{
    unsigned seeds = seeds_for(b, (double)c->parts * c->members, 40);
    w->parts = c->parts;
    for (unsigned n = 0; n < seeds; n++) {
        world_name(w, b->seed++, c->members + 1, false);
        for (int a = 0; a < ALGORITHM_COUNT; a++) measure_seed(b, c, w, a, 1.0 / seeds);
    }
    measure_times(b, c, w);
    print_cell(c);
}

/* What weights cost us: the best of several maps with weights, divided by the best of
 * as many with equal ones, in turn. */
static double weights_cost(const bench *b, world *w)
{
    unsigned rounds = seeds_for(b, (double)w->parts * (double)w->live_count * 10, 40);
    double best[2] = { 1e9, 1e9 };
    for (unsigned n = 0; n < 2 * rounds; n++) {
        bool weighted = n % 2 != 0;
        for (size_t i = 0; i < w->live_count; i++) w->members[i].weight = weighted ? w->weight[w->order[i]] : 1;
        double took = time_map(map_ours, w, 1);
        if (took < best[weighted]) best[weighted] = took;
    }
    return best[1] / best[0];
}

/* The last columns: what weights cost us in time, and so without AVX2. */
static void run_weighted(bench *b, const cell *c, world *w)
{
    double worst[ALGORITHM_COUNT] = { 0 }, mean[ALGORITHM_COUNT] = { 0 };
    unsigned seeds = c->parts > 20000 ? 2 : seeds_for(b, (double)c->parts * c->members, 20);
    w->parts = c->parts;
    for (unsigned n = 0; n < seeds; n++) {
        world_name(w, b->seed++, c->members, true);
        world_set(w, c->members, NULL, 0);
        for (int a = 0; a < ALGORITHM_COUNT; a++) {
            if (!algorithms[a].map_weighted) continue;
            algorithms[a].map_weighted(w, w->before);
            double deviation = unevenness(w, w->before, true);
            mean[a] += deviation / seeds;
            if (deviation > worst[a]) worst[a] = deviation;
        }
    }
    printf("  %-13s", c->title);
    for (int a = 0; a < ALGORITHM_COUNT; a++)
        if (algorithms[a].map_weighted) printf(" %9.2f %6.2f", mean[a], worst[a]);
    printf(" %9.1f", weights_cost(b, w));
    plain_only = 1;
    printf(" %9.1f\n", weights_cost(b, w));
    plain_only = 0;
    if (worst[OURS] >= 1) fail(b, QUOTA, "deviation from the weighted quota", c->parts, c->members, worst[OURS], 1);
}

/* ---- the plot ---- */

enum { PLOT_LEFT = 78, PLOT_RIGHT = 700, PLOT_TOP = 82, PLOT_BOTTOM = 520 };

/* Logarithmic from 1; 0, which has no logarithm, stands apart on the left. */
static double plot_x(double spread) { return PLOT_LEFT + (spread < 0.7 ? 26 : 88 + 80 * log2_of(spread < 1 ? 1 : spread)); }
static double plot_y(double movement) { return PLOT_BOTTOM - 30 - 183 * log2_of(movement < 1 ? 1 : movement); }

/* The mean over the four events: what a change costs, whichever it is. */
static double movement_of(const score *s)
{
    double sum = 0;
    for (int event = 0; event < EVENT_COUNT; event++) sum += s->moved[event] / s->least[event];
    return sum / EVENT_COUNT;
}

static void plot_mark(FILE *f, int a, double x, double y)
{
    const char *shapes[ALGORITHM_COUNT] = {
        "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z", "M-6,-4L6,-4L0,7z", "M0,-7L7,0L0,7L-7,0z", "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z",
        "M-4,-4L4,-4L4,4L-4,4z", "M0,-6L6,5L-6,5z", "M-5,-5L5,5M-5,5L5,-5", "M-6,0L6,0M0,-6L0,6"
    };
    bool filled = a <= SLOTS || a == RING || a == BOUNDED;      /* then edged in white, to stand apart from what it covers */
    fprintf(f, "<path d=\"%s\" transform=\"translate(%.1f %.1f) scale(%s)\" fill=\"%s\" stroke=\"%s\" stroke-width=\"%s\"/>\n",
            shapes[a], x, y, filled ? "1.25" : "1",
            filled ? algorithms[a].colour : "none", filled ? "#fff" : algorithms[a].colour, filled ? "1" : "2");
}

static void plot_text(FILE *f, double x, double y, const char *attributes, const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, attributes, text);
}

static void plot_axes(FILE *f)
{
    const double xs[] = { 0, 1, 2, 5, 10, 20, 50, 100 }, ys[] = { 1, 1.1, 1.25, 1.5, 2, 2.5, 3, 4 };
    char label[16];
    for (size_t n = 0; n < MGR__COUNT(xs); n++) {
        fprintf(f, "<path d=\"M%.1f,%dV%dM%d,%.1fH%d\" stroke=\"#e4e4e4\"/>\n",
                plot_x(xs[n]), PLOT_TOP, PLOT_BOTTOM, PLOT_LEFT, plot_y(ys[n]), PLOT_RIGHT);
        snprintf(label, sizeof label, "%g", xs[n]);
        plot_text(f, plot_x(xs[n]), PLOT_BOTTOM + 20, "text-anchor=\"middle\"", label);
        snprintf(label, sizeof label, "%g", ys[n]);
        plot_text(f, PLOT_LEFT - 10, plot_y(ys[n]) + 4, "text-anchor=\"end\"", label);
    }
    fprintf(f, "<path d=\"M%d,%dV%dH%d\" fill=\"none\" stroke=\"#333\"/>\n", PLOT_LEFT, PLOT_TOP, PLOT_BOTTOM, PLOT_RIGHT);
    fprintf(f, "<path d=\"M%d,%dl6,-10m4,0l-6,10\" stroke=\"#333\"/>\n", PLOT_LEFT + 50, PLOT_BOTTOM + 5);
    plot_text(f, (PLOT_LEFT + PLOT_RIGHT) / 2, PLOT_BOTTOM + 44, "text-anchor=\"middle\"", "max-min: partitions of the fullest less those of the emptiest");
    plot_text(f, 0, 0, "transform=\"translate(26 301) rotate(-90)\" text-anchor=\"middle\"", "partitions moved / least possible");
    plot_text(f, PLOT_LEFT, 28, "font-size=\"17\" font-weight=\"bold\"", "Evenness against movement: lower left is better");
    plot_text(f, PLOT_LEFT, 48, "fill=\"#555\"", "Each mark is one size of cluster, partitions x instances, from 16 x 3 up.");
    plot_text(f, PLOT_LEFT, 65, "fill=\"#555\"",
              "What moves is the mean over a join and the leave of the last, of one in the middle, of a tenth.");
}

/* Left of the mark where it would cross the edge, or the label of an earlier size. */
static bool plot_left(int a, const cell *cells, size_t n)
{
    double x = plot_x(cells[n].scores[a].spread), y = plot_y(movement_of(&cells[n].scores[a]));
    if (x > PLOT_RIGHT - 90) return true;
    for (size_t m = 0; m < n; m++) {
        double above = plot_y(movement_of(&cells[m].scores[a])) - y, beside = plot_x(cells[m].scores[a].spread) - x;
        if (above > -12 && above < 12 && beside > -60 && beside < 60) return true;
    }
    return false;
}

/* Sizes are written where they matter: at ours, and at whatever moves as much. All
 * of slots share one place or two. */
static void plot_series(FILE *f, int a, const cell *cells, size_t count)
{
    char style[96];
    for (size_t n = 0; n < count; n++) {
        double movement = movement_of(&cells[n].scores[a]), x = plot_x(cells[n].scores[a].spread), y = plot_y(movement);
        bool left = plot_left(a, cells, n);
        plot_mark(f, a, x, y);
        snprintf(style, sizeof style, "font-size=\"11\" fill=\"%s\" text-anchor=\"%s\"", algorithms[a].colour, left ? "end" : "start");
        if (a == OURS || movement > 1.8) plot_text(f, left ? x - 11 : x + 11, y + 4, style, cells[n].title);
        if (a == SLOTS && n == 0) plot_text(f, plot_x(1) + 11, plot_y(1) + 4, style, "every size");
    }
    plot_mark(f, a, PLOT_RIGHT + 30, PLOT_TOP + 16 + 26 * a);
    plot_text(f, PLOT_RIGHT + 46, PLOT_TOP + 20 + 26 * a, a == OURS ? "font-weight=\"bold\"" : "", algorithms[a].name);
}

static bool plot(const char *path, const cell *cells, size_t count)
{
    FILE *f = fopen(path, "w");
    if (!f) return false;
    fputs("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"880\" height=\"580\" viewBox=\"0 0 880 580\" "
          "font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"880\" height=\"580\" fill=\"#fff\"/>\n", f);
    plot_axes(f);
    for (int a = ALGORITHM_COUNT; a-- > 0; ) plot_series(f, a, cells, count);
    fputs("</svg>\n", f);
    bool good = !ferror(f);
    return fclose(f) == 0 && good;
}

/* ---- the limits on movement ----
 * What one in the middle that leaves was measured to move before [rush] was
 * written, with few seeds where it is little; below four partitions for each instance
 * what it moves since there are layers, where that is less. A tenth more is too much,
 * unless chance explains it: three standard errors of the mean over the seeds.
 *
 * More exactly, over 3,000 seeds where P N < 10,000, then 1e8 / (P N), at least 20
 * (65,536 x 1,000: 10). Mean when one in the middle leaves, standard error in units
 * of the last place, and what means over 20 seeds scatter by:
 *
 *    P \ N          2            3            5            8           10
 *       16  1.000  0 .00  1.140  3 .03  1.439  6 .08  1.837 10 .12  1.537 10 .12
 *       64  1.000  0 .00  1.068  1 .01  1.240  2 .03  1.470  4 .04  1.724  5 .06
 *      256  1.000  0 .00  1.036  1 .01  1.117  1 .01  1.245  1 .02  1.338  2 .02
 *    1,024  1.000  0 .00  1.019  0 .00  1.061  0 .01  1.128  1 .01  1.176  1 .01
 *   10,240  1.000  0 .00  1.006  0 .00  1.022  0 .00  1.044  0 .00  1.060  0 .00
 *   65,536  1.000  0 .00  1.003  0 .00  1.009  0 .00  1.019  0 .00  1.025  1 .00
 *
 *    P \ N         20           50          100         1,000
 *       16  1.431 13 .15  1.092  9 .12  1.041 10 .12
 *       64  2.074 10 .12  1.687 13 .16  1.301 12 .15
 *      256  1.933  4 .05  3.224 10 .13  1.927 11 .14  1.031 18 .08
 *    1,024  1.422  1 .02  2.374  5 .05  3.511 15 .10  2.90  12 .25
 *   10,240  1.136  1 .01  1.386  3 .01  1.825  8 .02  5.79  13 .13
 *   65,536  1.056  1 .00  1.147  3 .00  1.315  5 .01  4.38   5 .03
 *
 * A join is the leave of N + 1 backwards: at N = 2 what stands at 3. */

static const uint32_t limit_parts[] = { 16, 64, 256, 1024, 10240, 65536 };
static const uint32_t limit_members[] = { 2, 3, 5, 8, 10, 20, 50, 100, 1000 };
static const double limits[][9] = {
    { 1.00, 1.12, 1.41, 1.75, 1.54, 1.43, 1.10, 1.04, 0 },
    { 1.00, 1.05, 1.22, 1.46, 1.66, 2.07, 1.69, 1.29, 0 },
    { 1.00, 1.03, 1.13, 1.28, 1.36, 1.85, 3.24, 1.93, 0 },
    { 1.00, 1.02, 1.07, 1.12, 1.16, 1.41, 2.41, 3.72, 2.85 },
    { 1.00, 1.01, 1.02, 1.05, 1.07, 1.14, 1.41, 1.80, 6.5 },
    { 1.00, 1.00, 1.01, 1.02, 1.03, 1.05, 1.15, 1.30, 4.3 }
};

static void check_limit(bench *b, world *w, uint32_t parts, uint32_t members, double limit, int event)
{
    double moved, least, m = 0, l = 0, mm = 0, ml = 0, ll = 0;      /* sums, and sums of products */
    unsigned seeds = seeds_for(b, (double)parts * members, 300);
    w->parts = parts;
    for (unsigned n = 0; n < seeds; n++) {
        mgr__rng rng;
        rng.state = mgr__mix64(b->seed);
        world_name(w, b->seed++, members + 1, false);
        world_set(w, members, NULL, 0);
        map_ours(w, w->before);
        change(w, members, event, algorithms + OURS, &rng, &moved, &least);
        m += moved; l += least;
        mm += moved * moved; ml += moved * least; ll += least * least;
    }
    double ratio = m / l, over = ratio - 1.1 * limit;
    double variance = (mm - 2 * ratio * ml + ratio * ratio * ll) * seeds / (seeds - 1) / (l * l);
    printf("  %4.2f %4.2f", ratio, limit);
    if (over > 0 && over * over > 9 * variance) { puts(""); fail(b, MOVEMENT, "movement", parts, members, ratio, 1.1 * limit); }
}

static void check_limits(bench *b, world *w)
{
    printf("\nmanager.h, moved / least possible when one in the middle leaves: measured, and the value expected\n%7s", "");
    for (size_t i = 0; i < MGR__COUNT(limit_members); i++) printf(" %10u", (unsigned)limit_members[i]);
    for (size_t n = 0; n < MGR__COUNT(limit_parts); n++) {
        printf("\n%7u", (unsigned)limit_parts[n]);
        for (size_t i = 0; i < MGR__COUNT(limit_members); i++)
            if (limits[n][i] > 0) check_limit(b, w, limit_parts[n], limit_members[i], limits[n][i], LEAVE_MIDDLE);
    }
    printf("\n\nwhen one joins 1024 x 50:");
    check_limit(b, w, 1024, 50, 2.48, JOIN);
}

/* ---- slots, when one is empty ----
 * The worst that was measured when the policy was designed: 1.6. */

static void check_slots(bench *b, world *w, const cell *c)
{
    double moved = 0, least = 0;
    unsigned seeds = seeds_for(b, (double)c->parts * c->members, 100);
    w->parts = c->parts;
    for (unsigned n = 0; n < seeds; n++) {
        mgr__rng rng;
        uint32_t gone[2];
        rng.state = mgr__mix64(b->seed);
        world_name(w, b->seed++, c->members, false);
        gone[0] = 1 + mgr__rng_below(&rng, c->members - 2);
        do gone[1] = mgr__rng_below(&rng, c->members - 1); while (gone[1] == gone[0]);
        world_set(w, c->members, gone, 1);
        map_slots(w, w->before);
        world_set(w, c->members, gone, 2);
        map_slots(w, w->after);
        for (size_t x = 0; x < w->parts; x++) { moved += w->before[x] != w->after[x]; least += w->before[x] == gone[1]; }
        double spread = unevenness(w, w->after, false);
        if (spread > 1) fail(b, EVEN, "max-min of slots", c->parts, c->members, spread, 1);
    }
    printf("  %s %.2f", c->title, moved / least);
    if (moved <= 1.75 * least) return;
    puts("");
    fail(b, MOVEMENT, "movement of slots with one empty", c->parts, c->members, moved / least, 1.75);
}

/* ---- the limits on time ----
 * In multiples of rendezvous' time for the same map, so that they hold on any
 * machine. Where rendezvous takes 0.070 and 79 ms they are 0.05 and 25 ms with
 * AVX2, 0.15 and 130 ms without. Weights 1 to 10 may cost three times as much as
 * equal ones. */

typedef struct time_limit { uint32_t parts, members; double avx2, plain, weighted; } time_limit;

static const time_limit time_limits[] = { { 1024, 50, 0.71, 2.14, 3 }, { 65536, 1000, 0.32, 1.65, 3 } };

static bool has_avx2(void)
{
#ifdef MGR__RUSH_AVX2
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

/* A sample of each in turn, of half a millisecond and more; the best ones stay. */
static void time_round(world *w, bool weighted, const algorithm *a, double *best)
{
    for (int s = 0; s < (int)w->slots; s++) w->members[s].weight = weighted ? w->weight[s] : 1;
    double once = time_map(a->map, w, 1);
    double ms = once < 0.5 ? time_map(a->map, w, (unsigned)(0.5 / (once + 0.0005)) + 1) : once;
    if (ms < *best) *best = ms;
}

/* Noise only ever adds: what is too slow at first is measured again, up to twenty
 * times, and the best of all counts. */
static void check_time(bench *b, world *w, const time_limit *limit)
{
    double rendezvous = 1e9, equal = 1e9, weighted = 1e9, most = has_avx2() ? limit->avx2 : limit->plain;
    bool slow = true;
    w->parts = limit->parts;
    world_name(w, b->seed++, limit->members, true);
    world_set(w, limit->members, NULL, 0);
    for (int attempt = 0; slow && attempt < 20; attempt++) {
        for (int n = limit->parts > 20000 ? 3 : 15; n; n--) {
            time_round(w, false, algorithms + RENDEZVOUS, &rendezvous);
            time_round(w, false, algorithms + OURS, &equal);
            time_round(w, true, algorithms + OURS, &weighted);
        }
        slow = equal > most * rendezvous || weighted > limit->weighted * equal;
    }
    printf("measured %u x %u: %.2f of rendezvous' time (limit %.2f), with weights %.2f times that (limit %.2f)\n",
           (unsigned)limit->parts, (unsigned)limit->members, equal / rendezvous, most, weighted / equal, limit->weighted);
    if (equal > most * rendezvous) fail(b, TIME, "time", limit->parts, limit->members, equal / rendezvous, most);
    if (weighted > limit->weighted * equal)
        fail(b, TIME_WEIGHTED, "time with weights", limit->parts, limit->members, weighted / equal, limit->weighted);
}

/* As tests/run.sh reads it. */
static int verdict(const bench *b)
{
    static const char *const names[CHECK_COUNT] = { "bench_even", "bench_quota", "bench_movement", "bench_time", "bench_time_weighted" };
    int passed = 0, failed = 0, skipped = 0;
    for (int check = 0; check < CHECK_COUNT; check++) {
#ifndef BENCH_TIMES
        if (check >= TIME) { printf("skip %s: not built for it, see BENCH_TIMES\n", names[check]); skipped++; continue; }
#endif
        if (b->failed[check]) { printf("FAIL %s\n", names[check]); failed++; }
        else { printf("ok   %s\n", names[check]); passed++; }
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed > 0;
}

/* ---- refusals ----
 * Half of all pairs: at random, which leaves many ways; and staggered, each instance
 * refusing more than the one before it, so that seats are found by long chains only. */

static void run_refused(bench *b, world *w, uint32_t parts, uint32_t members)
{
    mgr_refusal *refused = (mgr_refusal *)malloc((size_t)parts * members * sizeof *refused);
    if (!refused) { perror("bench_rush"); exit(2); }
    printf("  %u x %u", (unsigned)parts, (unsigned)members);
    w->parts = parts;
    world_name(w, b->seed++, members, false);
    world_set(w, members, NULL, 0);
    for (int steps = 0; steps < 2; steps++) {
        size_t count = 0;
        for (uint32_t x = 0; x < parts; x++)
            for (uint32_t i = 0; i < members; i++)
                if (steps ? i < (uint64_t)x * members / parts : mgr__mix64((uint64_t)x << 20 | i) >> 63) {
                    refused[count].partition = x;
                    refused[count++].member = i;
                }
        double rush = 1e9, slots = 1e9;
        for (uint32_t i = 0; i < members; i++) w->load[i] = i + 1;
        for (int n = 0; n < 3; n++) {
            double from = now_ms(), between;
            must(mgr_rush_map_refusing(w->names, parts, w->members, members, 1, refused, count, w->before));
            between = now_ms();
            must(mgr_rush_slots(w->names, parts, w->members, w->load, members, refused, count, w->before));
            if (between - from < rush) rush = between - from;
            if (now_ms() - between < slots) slots = now_ms() - between;
        }
        printf("  %s %.1f, slots %.1f", steps ? "staggered" : "random", rush, slots);
    }
    puts("");
    free(refused);
}

int main(int argc, char **argv)
{
    static const uint32_t sizes[][2] = { { 16, 3 }, { 64, 8 }, { 256, 10 }, { 1024, 10 }, { 1024, 50 }, { 10240, 100 }, { 65536, 1000 } };
    cell cells[MGR__COUNT(sizes)];
    const char *path = NULL;
    bench b = { false, { false }, 1 };
    world *w = (world *)calloc(1, sizeof *w);
    if (!w) { perror("bench_rush"); return 2; }
    for (int n = 1; n < argc; n++) {
        if (strcmp(argv[n], "--quick") == 0) b.quick = true;
        else if (argv[n][0] != '-' && !path) path = argv[n];
        else { fputs("usage: bench_rush [--quick] [OUTPUT.svg]\n", stderr); return 2; }
    }
    size_t count = b.quick ? 5 : MGR__COUNT(sizes);
    memset(cells, 0, sizeof cells);
    puts("partitions x instances; max-min and movement as means over the seeds, time relative to rendezvous");
    for (size_t n = 0; n < count; n++) {
        cells[n].parts = sizes[n][0];
        cells[n].members = sizes[n][1];
        snprintf(cells[n].title, sizeof cells[n].title, "%u x %u", (unsigned)sizes[n][0], (unsigned)sizes[n][1]);
        run_cell(&b, cells + n, w);
    }
    printf("\nweights 1 to 10: largest deviation from the weighted quota, mean and worst\n%-14s", "");
    for (int a = 0; a < ALGORITHM_COUNT; a++) if (algorithms[a].map_weighted) printf(" %16s", algorithms[a].name);
    printf(" %9s %9s\n", "our time", "plain");
    for (size_t n = 0; n < count; n++) run_weighted(&b, cells + n, w);
    if (!b.quick) check_limits(&b, w);
    printf("\n\nmanager.h slots, one slot empty, moved / least possible when another leaves:\n");
    for (size_t n = 0; n < count; n++) check_slots(&b, w, cells + n);
    puts("\n\nhalf of all pairs refused, ms:");
    run_refused(&b, w, 4096, 50);
    if (!b.quick) run_refused(&b, w, 65536, 100);
    puts("");
    for (size_t n = 0; n < MGR__COUNT(time_limits); n++) check_time(&b, w, time_limits + n);
    free(w);
    if (path && !plot(path, cells, count)) { perror(path); return 2; }
    return verdict(&b);
}
