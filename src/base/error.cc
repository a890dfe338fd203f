// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

#include <fmt/core.h>

#include <cerrno>
#include <cstring>

namespace byre {

std::string_view name_of(Errc code) {
  switch (code) {
    case Errc::corrupt:
      return "corrupt";
    case Errc::io:
      return "io";
    case Errc::no_space:
      return "no_space";
    case Errc::unsupported:
      return "unsupported";
    case Errc::invalid:
      return "invalid";
    case Errc::read_only:
      return "read_only";
    case Errc::not_found:
      return "not_found";
    case Errc::exists:
      return "exists";
    case Errc::denied:
      return "denied";
    case Errc::cancelled:
      return "cancelled";
    case Errc::busy:
      return "busy";
  }
  return "unknown";
}

namespace {

/// Bytes of the well-formed UTF-8 sequence at the start of `text` (RFC 3629), or 0.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  size_t length = 0;
  uint32_t point = 0;
  if ((lead & 0xe0) == 0xc0) {
    length = 2;
    point = lead & 0x1f;
  } else if ((lead & 0xf0) == 0xe0) {
    length = 3;
    point = lead & 0x0f;
  } else if ((lead & 0xf8) == 0xf0) {
    length = 4;
    point = lead & 0x07;
  } else {
    return 0;
  }
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    point = point << 6 | (byte(i) & 0x3f);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xd800 && point <= 0xdfff;
  if (point < kSmallest[length] || point > 0x10ffff || surrogate) return 0;
  if (point >= 0x80 && point < 0xa0) return 0;  // C1 controls drive terminals too.
  return length;
}

}  // namespace

std::string quoted(std::string_view text) {
  std::string out = "'";
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    const auto lead = static_cast<unsigned char>(text[0]);
    if (length == 0 || lead < 0x20 || lead == 0x7f) {
      out += fmt::format("\\x{:02x}", lead);
      text.remove_prefix(1);
      continue;
    }
    if (lead == '\'' || lead == '\\') out += '\\';
    out += text.substr(0, length);
    text.remove_prefix(length);
  }
  return out + "'";
}

Error::Error(Errc code, std::string message, int sys_errno, std::source_location where)
    : rep_(std::make_unique<Rep>(Rep{code, sys_errno, where, std::move(message)})) {}

int Error::sys_errno() const {
  if (rep_->sys_errno != 0) return rep_->sys_errno;
  switch (rep_->code) {
    case Errc::corrupt:
    case Errc::io:
      return EIO;
    case Errc::no_space:
      return ENOSPC;
    case Errc::unsupported:
      return ENOTSUP;
    case Errc::invalid:
      return EINVAL;
    case Errc::read_only:
      return EPERM;
    case Errc::not_found:
      return ENOENT;
    case Errc::exists:
      return EEXIST;
    case Errc::denied:
      return EACCES;
    case Errc::cancelled:
      return ECANCELED;
    case Errc::busy:
      return EBUSY;
  }
  return EIO;
}

Error Error::while_doing(std::string_view what) && {
  rep_->message = cat(what, ": ", rep_->message);
  return std::move(*this);
}

Error Error::copy() const {
  if (!rep_) return {};
  return Error(rep_->code, rep_->message, rep_->sys_errno, rep_->where);
}

Error errno_error(int number, std::string_view what, std::source_location where) {
  Errc code = Errc::io;
  switch (number) {
    case ENOSPC:
    case EDQUOT:
      code = Errc::no_space;
      break;
    case EFBIG:
      code = Errc::no_space;
      break;
    case EOPNOTSUPP:
      code = Errc::unsupported;
      break;
    case EINVAL:
      code = Errc::invalid;
      break;
    case EROFS:
      code = Errc::read_only;
      break;
    case ENOENT:
    case ENOTDIR:
      code = Errc::not_found;
      break;
    case EEXIST:
      code = Errc::exists;
      break;
    case EACCES:
    case EPERM:
      code = Errc::denied;
      break;
    case ECANCELED:
      code = Errc::cancelled;
      break;
    case EAGAIN:
    case EBUSY:
      code = Errc::busy;
      break;
    default:
      break;
  }
  std::string why = std::strerror(number);
  if (number == EMFILE) why += "; `ulimit -n` sets how many a process may have";
  return Error(code, cat(what, ": ", why), number, where);
}

}  // namespace byre
