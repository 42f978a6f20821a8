/* The most telling scenarios of the fault suite, once each, as part of `make test`. */
#define FAULTS_SHORT
#include "faults.c"
