// SPDX-License-Identifier: Apache-2.0
/// As base/precompiled.h, for the engine and what is built on it.
#pragma once

#include <fmt/core.h>

#include "base/precompiled.h"
#include "block/raw.h"
#include "qcow2/image.h"
