/* What lies in RTC memory, at the same address on both chips: a restart by software keeps it, loss of power does not. */
#pragma once

#include <stdint.h>

#define RETAINED_MAGIC 0x7e57f1a5

struct retained {
    uint32_t magic;        /* anything else: nothing is kept */
    char slot[20];         /* label of the partition that the loader took the app from */
    uint32_t crashes_left; /* of the command `loop` */
    uint32_t stored;       /* by the first stage of the multi-stage case */
};

#define RETAINED ((volatile struct retained *)0x50000000)
