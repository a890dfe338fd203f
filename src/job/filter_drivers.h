// SPDX-License-Identifier: Apache-2.0
/// The drivers of filters (filter_drivers.cc), for the list of all (drivers.cc).
#pragma once

#include <span>

#include "job/driver.h"

namespace byre {

std::span<const Driver* const> filter_drivers();

}  // namespace byre
