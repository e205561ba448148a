// Linear layers over a team of threads.
#pragma once

#include "gemv/multiply.h"

#include <omp.h>
#include <vector>

constexpr int64_t WORTH_A_TEAM = 1 << 15;  // weight elements; below, waking the team takes longer than the work

template <class Linear> void over_team(const Linear &linear, int64_t weights, int64_t threads) {
    const int size = team(threads, weights, WORTH_A_TEAM);
    std::vector<Taken> taken(size);
#pragma omp parallel num_threads(size)
    linear.run(omp_get_thread_num(), size, taken.data());
}
