// SPDX-License-Identifier: Apache-2.0
/// Uri: where an NBD server can be reached, and as what, in the spelling that every client takes.
///
///     nbd://127.0.0.1:10809/NAME
///     nbd+unix:///NAME?socket=/run/disk.sock
///
/// parse_uri() also takes the older names nbd:unix:PATH and nbd:HOST:PORT, both with
/// `:exportname=NAME` behind them.
/// Invariant: text() holds no character that a URI reserves, whatever the names hold: bytes outside
/// of letters, digits and "-._~/" are percent-encoded.
/// Not here: quoting for a shell (cli), listening (nbd_listen.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace byre::nbd {

struct Uri {
  std::optional<std::string> socket;  ///< The path of a unix socket; none: TCP.
  std::string host;                   ///< An address or a name, without brackets.
  uint16_t port = 0;
  std::string export_name;

  std::string text() const;
};

inline constexpr uint16_t kDefaultPort = 10809;

/// Is it in one of the spellings that parse_uri() knows, or refuses because of TLS?
bool looks_like_uri(std::string_view name);
/// Errc::unsupported for TLS, Errc::invalid for what makes no sense.
Result<Uri> parse_uri(std::string_view name);

/// Relative paths begin in the current folder, which a client need not share.
Uri unix_uri(const std::string& path, std::string export_name);
/// `address`: where the server listens.  One that means "everywhere" is reached as the loopback.
Uri tcp_uri(const std::string& address, uint16_t port, std::string export_name);

/// Only this machine reaches it.
bool is_loopback(std::string_view address);

}  // namespace byre::nbd
