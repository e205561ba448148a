// Linear layers over a team of threads.
#pragma once

#include "gemv/multiply.h"

#include <omp.h>

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // weight elements; below, waking the team takes longer than the work

template <class Linear> void over_team(const Linear &linear, int64_t weights, int64_t threads) {
    std::atomic<int64_t> taken{0};
#pragma omp parallel num_threads(team(threads, weights, WORTH_A_TEAM))
    linear.run(omp_get_thread_num(), omp_get_num_threads(), taken);
}
