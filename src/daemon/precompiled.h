// SPDX-License-Identifier: Apache-2.0
/// As qcow2/precompiled.h, with JSON, which every command of the daemon reads and writes.
#pragma once

#include <nlohmann/json.hpp>

#include "qcow2/precompiled.h"
