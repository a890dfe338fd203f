// SPDX-License-Identifier: Apache-2.0
/// As base/precompiled.h, for the test programs.
#pragma once

#include <gtest/gtest.h>

#include "qcow2/precompiled.h"
#include "sim/sim_disk.h"
#include "sim/sim_reactor.h"
