/* The second C file of the embedding. */
#ifndef PART_H
#define PART_H
#ifdef __cplusplus
extern "C" {
#endif
int part_spread(void);
#ifdef __cplusplus
}
#endif
#endif
