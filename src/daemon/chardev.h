// SPDX-License-Identifier: Apache-2.0
/// Chardev: where the clients of a monitor come from: a socket that is listened at, one that is
/// connected to, or standard input and output.
///
/// One client at a time; others wait in the kernel's queue until it has gone.  A server whose
/// `wait` is on (the default, as in QEMU) is open only once its first client is there. Invariant:
/// sockets in the file system have mode 0600. Not here: what is said (qmp_session.h).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "daemon/addresses.h"
#include "io/channel.h"

namespace byre::qmp {

/// `--chardev`
struct ChardevOptions {
  enum class Backend : uint8_t { socket, stdio } backend = Backend::socket;
  std::string id;
  std::optional<std::string> path, host, port, fd;
  bool abstract = false;
  bool tight = true;
  bool server = false;
  std::optional<bool> wait;
  bool signal = true;
};
const Enumeration& definition_of(const ChardevOptions::Backend*);
const Struct& definition_of(const ChardevOptions*);

class Chardev {
 public:
  static Task<std::unique_ptr<Chardev>> open(AddressContext context, ChardevOptions options);
  Chardev(const Chardev&) = delete;

  const std::string& id() const { return id_; }
  /// "socket" or "stdio".
  std::string_view backend() const { return place_ == "stdio" ? "stdio" : "socket"; }
  /// Where its clients come from, as query-chardev says it: "unix:/run/qmp,server=on".
  const std::string& place() const { return place_; }
  /// Where its first client must come before anything else goes on; empty: nowhere.
  std::string waits_for() const;
  Task<void> wait_for_first();
  /// The next client; null: no more will come.
  Task<std::unique_ptr<Channel>> next();
  /// Ends next(), and each later one.
  void stop();
  bool used = false;  ///< By a monitor.

 private:
  Chardev(Reactor& reactor, std::string id) : reactor_(reactor), id_(std::move(id)) {}

  Reactor& reactor_;
  const std::string id_;
  std::string place_ = "stdio";
  std::optional<Listener> listener_;
  std::unique_ptr<Channel> first_;  ///< That has come already.
  bool waits_ = false;
  bool stopped_ = false;
};

}  // namespace byre::qmp
