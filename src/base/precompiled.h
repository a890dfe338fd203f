// SPDX-License-Identifier: Apache-2.0
/// What nearly every file includes, compiled once for all libraries (cmake/layers.cmake).
///
/// No file includes this one, and each file still includes what it uses: a build with
/// -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON must pass as well.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <compare>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <expected>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <source_location>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/units.h"
