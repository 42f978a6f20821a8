/* A second file of the same program, which uses the library too. */
#ifdef EMBED_STATIC
#define MANAGER_STATIC
#define MANAGER_IMPLEMENTATION
#endif
#include "manager.h"
#include "part.h"

/* The difference between the most and the least loaded of three members with ten
 * partitions: 1 when the map is even. -1: no map. */
int part_spread(void)
{
    static const char *const partitions[10] = { "0", "1", "2", "3", "4", "5", "6", "7", "8", "9" };
    static const mgr_member members[3] = { { "a", 1, 1 }, { "b", 1, 2 }, { "c", 1, 3 } };
    uint32_t owners[10];
    int load[3] = { 0, 0, 0 }, most = 0, least = 10;
    if (mgr_rush_map(partitions, 10, members, 3, 1, owners) != MGR_OK) return -1;
    for (int i = 0; i < 10; i++) load[owners[i]]++;
    for (int i = 0; i < 3; i++) {
        if (load[i] > most) most = load[i];
        if (load[i] < least) least = load[i];
    }
    return most - least;
}
