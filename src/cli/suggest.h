// SPDX-License-Identifier: Apache-2.0
/// What a mistyped word may have been meant to be.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace byre {

/// The one of `known` that is nearest to `word`, if it is near: one slip (a letter too many, too
/// few, another one, or two swapped) for each three letters, one at least; or the only one that
/// begins with `word`.  Empty when there is none, or when two are equally near.
std::string_view closest(std::string_view word, std::span<const std::string_view> known);

}  // namespace byre
