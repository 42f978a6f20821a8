# manager.h: building and testing. A C compiler and GNU make are enough; what else
# a test needs (Consul, g++, clang, musl-gcc) it gets itself or skips by name.
#
#   make            the program and the examples, in build/
#   make test       everything, against a real Consul
#   make unit       only what needs no cluster
#   make sanitize   the unit tests under ASan and UBSan, the threads under TSan
#   make fuzz       each fuzzer for FUZZ_S seconds
#   make mutants    take each rule of safety out, and see that a test notices: some minutes
#   make faults     every failure on three servers, hosts in network namespaces (root);
#                   ROUNDS=2 SEED=1 SCENARIO=; by number: SCENARIO="kills=200 moves=50 stop=20 consul_lock"
#   make bench-rush placement against its alternatives: a table, and build/rush.svg
#   make cross      32 bits, big-endian, other compilers: the same maps everywhere
#   make warnings   every warning, every compiler and standard found here
#   make demo       watch a small cluster work
#   make install    PREFIX=/usr/local DESTDIR=

CFLAGS      ?= -O2 -g
TEST_CFLAGS ?= -O0 -g
STD         ?= -std=c99
WARN        ?= -Wall -Wextra -pedantic
TEST_WARN   ?= $(WARN) -Wno-unused-function
PREFIX      ?= /usr/local
JOBS        ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
LDLIBS      += -pthread
# Recursive, so that it is read in a recipe, where MAKEFLAGS tells of a -j given.
PARALLEL     = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(JOBS))

B := build
T := $(B)/tests

EXAMPLES := $(patsubst examples/%.c,$(B)/%,$(wildcard examples/*.c))
UNITS    := $(patsubst tests/%.c,$(T)/%,$(wildcard tests/test_*.c tests/sim*.c))
E2E      := $(patsubst tests/%.c,$(T)/%,$(wildcard tests/e2e_*.c))

# Each example holds the whole header: those that are only to be looked at are built
# quickly, unless CFLAGS were given.
$(filter-out $(B)/manager,$(EXAMPLES)): CFLAGS := $(if $(filter file,$(origin CFLAGS)),-O1 -g,$(CFLAGS))

# One header: everything depends on it, and on whatever small headers stand beside.
HEADERS  := manager.h $(wildcard examples/*.h tests/*.h)

.PHONY: all test test-build unit unit-threads sanitize fuzz mutants faults bench-rush warnings cross demo install clean distclean
all: $(EXAMPLES)

$(EXAMPLES): $(B)/%: examples/%.c $(HEADERS)
	@mkdir -p $(B)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) -I. -Iexamples $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

$(UNITS) $(E2E): $(T)/%: tests/%.c $(HEADERS)
	@mkdir -p $(T)
	$(CC) $(STD) $(TEST_WARN) $(CPPFLAGS) -I. -Iexamples -Itests $(TEST_CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

$(T)/e2e_netns: tests/faults.c

# Asked each time, fetched once, beside the compilers' work. Not to be had is no
# error here: the tests that need Consul then say that they were skipped.
.PHONY: $(B)/consul.path
$(B)/consul.path:
	@mkdir -p $(B)
	@tests/consul.sh >$@ || : >$@

test-build: $(B)/consul.path $(EXAMPLES) $(UNITS) $(E2E) $(T)/bench_rush

test:
	@$(MAKE) --no-print-directory $(PARALLEL) test-build
	@CC="$(CC)" CONSUL="$$(cat $(B)/consul.path)" tests/run.sh $(UNITS) tests/style.sh tests/embed/embed.sh $(T)/bench_rush $(E2E)

unit:
	@$(MAKE) --no-print-directory $(PARALLEL) $(B)/consul.path $(UNITS)
	@CC="$(CC)" CONSUL="$$(cat $(B)/consul.path)" tests/run.sh $(UNITS)

# What tests/sanitize.sh runs under ThreadSanitizer.
unit-threads:
	@$(MAKE) --no-print-directory $(PARALLEL) $(T)/test_host
	@CC="$(CC)" tests/run.sh $(T)/test_host

sanitize:
	@CC="$(CC)" MAKE="$(MAKE)" JOBS="$(JOBS)" tests/sanitize.sh

fuzz:
	@tests/fuzz.sh

mutants:
	@CC="$(CC)" tests/mutants.sh

$(T)/sim $(T)/test_rush: TEST_CFLAGS = -O1 -g
# Given other flags it does not know that its times count.
$(T)/bench_rush: TEST_CFLAGS = -O2 -g -DBENCH_TIMES
$(T)/faults $(T)/bench_rush: $(T)/%: tests/%.c $(HEADERS)
	@mkdir -p $(T)
	$(CC) $(STD) $(TEST_WARN) $(CPPFLAGS) -I. -Iexamples -Itests $(TEST_CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

ROUNDS ?= 2
SEED ?= 1
faults: $(T)/faults $(B)/manager $(B)/consul.path
	@CONSUL="$$(cat $(B)/consul.path)" $(T)/faults $(ROUNDS) $(SEED) $(SCENARIO)

bench-rush: $(T)/bench_rush
	@$(T)/bench_rush $(B)/rush.svg

warnings:
	@tests/warnings.sh

cross:
	@JOBS="$(JOBS)" tests/cross.sh

demo: $(B)/manager $(B)/demo
	@$(B)/demo

install: $(B)/manager
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include
	install -m 755 $(B)/manager $(DESTDIR)$(PREFIX)/bin/manager
	install -m 644 manager.h $(DESTDIR)$(PREFIX)/include/manager.h

# Keeps the Consul that was fetched: distclean forgets that as well.
clean:
	@[ ! -d $(B) ] || find $(B) -mindepth 1 -maxdepth 1 ! -name consul -exec rm -rf {} +

distclean:
	rm -rf $(B)
