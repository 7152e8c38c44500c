/* Where callgrind begins and ends to count, for a process that it runs: counted_steps.py. */
#include <valgrind/callgrind.h>

void begin(void) {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

/* Stop, and write what was counted since `begin` to a file that names the part. */
void end(const char *part) {
    CALLGRIND_DUMP_STATS_AT(part);
    CALLGRIND_STOP_INSTRUMENTATION;
}
