/* A program that embeds manager.h: one partition, worked on inside the program.
 * Built three ways by embed.sh: this file holds the implementation and part.c
 * only the declarations; both hold a private one (EMBED_STATIC); all of it in
 * this file (EMBED_ONE). Alone it sees to it that the calls work and that an
 * absent Consul is reported; with an address as argument it joins a real one,
 * takes its partition and leaves. In the common part of C and C++. */
#ifdef EMBED_STATIC
#define MANAGER_STATIC
#endif
#define MANAGER_IMPLEMENTATION
#include "manager.h"

#include <stdio.h>
#include <string.h>

#ifdef EMBED_ONE
#include "part.c"
#else
#include "part.h"
#endif

typedef struct work { int begun, ended; unsigned long long fence; } work;

static mgr_answer begin(mgr *m, const char *partition, const mgr_grant *grant, void *user)
{
    work *w = (work *)user;
    if (strcmp(partition, "only") == 0) w->begun++;
    w->fence = (unsigned long long)mgr_grant_fence(grant);
    if (mgr_grant_left_ms(grant) <= 0) w->fence = 0;
    mgr_leave(m);
    return MGR_DONE;
}

static mgr_answer end(mgr *m, const char *partition, uint32_t within_ms, void *user)
{
    (void)m; (void)partition; (void)within_ms;
    ((work *)user)->ended++;
    return MGR_DONE;
}

static mgr_result run(const char *address, uint32_t start_timeout_ms, work *w)
{
    static const char *const partitions[] = { "only" };
    mgr_desc desc;
    mgr *m = NULL;
    memset(&desc, 0, sizeof desc);
    desc.service_name = "embedded";
    desc.instance_id = "embedded-1";
    desc.consul_addr = address;
    desc.partitions = partitions;
    desc.partition_count = 1;
    desc.lease_ms = 3000;
    desc.delay_ms = 4000;
    desc.session_ttl_ms = 10000;
    desc.settle_ms = 100;
    desc.start_timeout_ms = start_timeout_ms;
    desc.on_acquire = begin;
    desc.on_release = end;
    desc.user = w;
    mgr_result result = mgr_open(&m, &desc);
    if (result == MGR_OK) result = mgr_run(m);
    if (result != MGR_OK) printf("%s: %s\n", mgr_result_text(result), m ? mgr_error_text(m) : "no instance");
    mgr_close(m);
    return result;
}

int main(int argc, char **argv)
{
    work w;
    memset(&w, 0, sizeof w);
    if (part_spread() != 1) { printf("the map is not even\n"); return 1; }
    if (argc > 1) {
        mgr_result result = run(argv[1], 30000, &w);
        if (result != MGR_OK || w.begun != 1 || w.ended != 1 || !w.fence) {
            printf("begun %d, ended %d, fence %llu\n", w.begun, w.ended, w.fence);
            return 1;
        }
    } else if (run("127.0.0.1:1", 300, &w) == MGR_OK || w.begun) {   /* tcpmux: nobody listens */
        printf("an absent Consul was not reported\n");
        return 1;
    }
    printf("embedded: ok\n");
    return 0;
}
