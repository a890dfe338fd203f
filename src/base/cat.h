// SPDX-License-Identifier: Apache-2.0
/// cat(): joins text and numbers into one string.
///
/// Nearly every file makes errors with it, so it is no template: a call site makes an array of
/// parts, and one function writes them all.  ({fmt} in a header costs each file that includes it
/// seconds to compile.)
/// Not here: widths, precisions, bases; where those matter a .cc file includes <fmt/core.h>.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace byre {

template <class Tag>
struct Quantity;

/// One part of a sentence.  It refers to the text that it is made of.
class CatPart {
 public:
  CatPart(std::string_view text) : kind_(Kind::text), text_(text.data()), number_(text.size()) {}
  CatPart(const std::string& text) : CatPart(std::string_view(text)) {}
  CatPart(const char* text) : CatPart(std::string_view(text)) {}
  CatPart(char letter) : kind_(Kind::letter), number_(static_cast<unsigned char>(letter)) {}
  CatPart(bool value) : CatPart(std::string_view(value ? "true" : "false")) {}
  template <std::unsigned_integral T>
  CatPart(T value) : kind_(Kind::positive), number_(value) {}
  template <std::signed_integral T>
  CatPart(T value) : kind_(Kind::integer), number_(static_cast<uint64_t>(int64_t{value})) {}
  CatPart(double value) : kind_(Kind::real), real_(value) {}
  /// An offset or a cluster, as people write addresses (base/units.h).
  template <class Tag>
  CatPart(Quantity<Tag> quantity) : kind_(Kind::address), number_(quantity.value) {}

  void append_to(std::string& out) const;

 private:
  enum class Kind : uint8_t { text, letter, positive, integer, real, address };
  Kind kind_;
  const char* text_ = nullptr;
  union {
    uint64_t number_;
    double real_;
  };
};

std::string cat_parts(std::initializer_list<CatPart> parts);

template <class... Parts>
std::string cat(const Parts&... parts) {
  return cat_parts({CatPart(parts)...});
}

/// A number as people write addresses: 0x7ffdc.
std::string hex(uint64_t value);

}  // namespace byre
