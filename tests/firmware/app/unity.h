/* The part of Unity's interface that the cases use. */
#pragma once

#include <stdint.h>

#define MAX_STAGES 2

struct test_case {
    const char *name;
    const char *tags;
    int line;
    int stages; /* 1, or as many as the sub-menu has entries */
    void (*run[MAX_STAGES])(void);
    const char *stage_names[MAX_STAGES];
};

extern const struct test_case test_cases[];
extern const int test_case_count;

/* A case that fails or is ignored says so, and returns. */
void unity_fail(int line, const char *format, uint32_t expected, uint32_t actual);
void unity_ignore(int line, const char *message);

#define TEST_ASSERT_EQUAL(expected, actual)                                                                            \
    do {                                                                                                               \
        uint32_t wanted_ = (expected), found_ = (actual);                                                              \
        if (wanted_ != found_) {                                                                                       \
            unity_fail(__LINE__, "Expected %d Was %d", wanted_, found_);                                               \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

#define TEST_IGNORE_MESSAGE(message)                                                                                   \
    do {                                                                                                               \
        unity_ignore(__LINE__, message);                                                                               \
        return;                                                                                                        \
    } while (0)

/* Between the boards of a multi-device case; a person or a test tool carries the signals from one to the other. */
void send_signal(const char *name);
void wait_for_signal(const char *name);
