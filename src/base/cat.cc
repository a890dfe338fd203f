// SPDX-License-Identifier: Apache-2.0
#include "base/cat.h"

#include <fmt/format.h>

#include <iterator>

namespace byre {

void CatPart::append_to(std::string& out) const {
  switch (kind_) {
    case Kind::text:
      out.append(text_, number_);
      break;
    case Kind::letter:
      out += static_cast<char>(number_);
      break;
    case Kind::positive:
      fmt::format_to(std::back_inserter(out), "{}", number_);
      break;
    case Kind::integer:
      fmt::format_to(std::back_inserter(out), "{}", static_cast<int64_t>(number_));
      break;
    case Kind::real:
      fmt::format_to(std::back_inserter(out), "{}", real_);
      break;
    case Kind::address:
      fmt::format_to(std::back_inserter(out), "{:#x}", number_);
      break;
  }
}

std::string cat_parts(std::initializer_list<CatPart> parts) {
  std::string out;
  for (const CatPart& part : parts) part.append_to(out);
  return out;
}

std::string hex(uint64_t value) { return fmt::format("{:#x}", value); }

}  // namespace byre
