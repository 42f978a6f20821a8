/* A test file is a list of TEST functions and a main that RUNs them. CHECKs count
 * and go on; a test with a failed CHECK fails. The last line of every program is
 * "N passed, N failed, N skipped", which tests/run.sh adds up. */
#ifndef TEST_H
#define TEST_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How long a test waits for what must come: a safety bound, far above what anything takes. */
#ifndef TEST_PATIENCE_MS
#define TEST_PATIENCE_MS 10000
#endif

static int         test__passed, test__failed, test__skipped;
static bool        test__bad;
static const char *test__skip_why, *test__name;

/* With TEST_FIRST=1 in the environment a program is over at its first failed CHECK,
 * clean-up or not: for tests/mutants.sh, which only asks whether there is one. */
static void test__failed_check(void)
{
    const char *first = getenv("TEST_FIRST");
    test__bad = true;
    if (!first || strcmp(first, "1") != 0 || !test__name) return;
    printf("FAIL %s\n", test__name);
    fflush(stdout);
    _Exit(1);
}

#define TEST(name) static void name(void)

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition);                \
            test__failed_check();                                                               \
        }                                                                                       \
    } while (0)

#define CHECK_INT(got, wanted)                                                                  \
    do {                                                                                        \
        long long test__g = (long long)(got), test__w = (long long)(wanted);                    \
        if (test__g != test__w) {                                                               \
            printf("%s:%d: %s is %lld, wanted %lld\n", __FILE__, __LINE__, #got, test__g, test__w); \
            test__failed_check();                                                               \
        }                                                                                       \
    } while (0)

#define CHECK_STR(got, wanted)                                                                  \
    do {                                                                                        \
        const char *test__g = (got), *test__w = (wanted);                                       \
        if (!test__g || strcmp(test__g, test__w) != 0) {                                        \
            printf("%s:%d: %s is \"%s\", wanted \"%s\"\n", __FILE__, __LINE__, #got,            \
                   test__g ? test__g : "(null)", test__w);                                      \
            test__failed_check();                                                               \
        }                                                                                       \
    } while (0)

/* End the test as skipped: only for what this machine cannot have. */
#define SKIP(why) do { test__skip_why = (why); return; } while (0)

/* Run one test. With arguments, only the tests whose name contains one of them. */
static void test__run(const char *name, void (*fn)(void), int argc, char **argv)
{
    bool wanted = argc < 2;
    for (int i = 1; i < argc; i++) if (strstr(name, argv[i])) wanted = true;
    if (!wanted) return;
    test__bad = false;
    test__skip_why = NULL;
    test__name = name;
    fn();
    if (test__bad) { test__failed++; printf("FAIL %s\n", name); }
    else if (test__skip_why) { test__skipped++; printf("skip %s: %s\n", name, test__skip_why); }
    else { test__passed++; printf("ok   %s\n", name); }
    fflush(stdout);
}

#define RUN(name) test__run(#name, name, argc, argv)

static int test__end(void)
{
    printf("%d passed, %d failed, %d skipped\n", test__passed, test__failed, test__skipped);
    return test__failed ? 1 : 0;
}

#endif
