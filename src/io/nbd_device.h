// SPDX-License-Identifier: Apache-2.0
/// NbdDevice: a disk of the kernel's NBD client, such as /dev/nbd0, whose server we are.
///
///     NbdDevice device = co_await NbdDevice::open(reactor, "/dev/nbd0");
///     co_await device.attach(socket, {.size = size, .flags = flags});
///     ... the kernel sends requests through the socket, with no handshake before them ...
///     co_await device.flush();        // what the kernel holds back for the disk
///     co_await device.disconnect();   // it sends NBD_CMD_DISC
///     co_await device.ended();        // once our end of the socket is closed
///
/// By the ioctls of <linux/nbd.h>, as nbd-client did before netlink: they work in a container, and
/// the kernel lets the disk go when the process dies.  NBD_DO_IT blocks for as long as the disk is
/// there, on a thread of its own.
/// The disk is in its server's hands meanwhile: whatever reads or syncs it waits for answers that
/// this process gives.  So calls that do (partitions, flush) have threads of their own as well.
/// Invariant: the object is destroyed when nothing was attached, or after ended().
/// Not here: the other end of the socket (export/nbd_server_run.h).
#pragma once

#include <cstdint>
#include <string>

#include "coro/task.h"
#include "io/descriptor.h"
#include "io/own_thread.h"
#include "io/reactor.h"

namespace byre {

class NbdDevice {
 public:
  /// Of what is attached.
  struct Disk {
    uint64_t size = 0;   ///< Whole sectors.
    uint16_t flags = 0;  ///< Transmission flags, as in the NBD protocol.
  };

  NbdDevice(NbdDevice&& other) noexcept = default;

  /// Changes nothing yet.  What is no NBD device is refused.
  static Task<NbdDevice> open(Reactor& reactor, std::string path);

  const std::string& path() const { return path_; }

  /// Ends when the disk can be used by everybody, its partitions included; requests come through
  /// `socket`, of which the kernel keeps its own copy, before this ends.  Errc::busy: the device
  /// has a server.
  Task<void> attach(int socket, Disk disk);
  bool attached() const { return attached_; }
  /// Writes back what the kernel holds for the disk, also for a file system that is mounted on it.
  Task<void> flush();
  /// New requests fail; the kernel sends NBD_CMD_DISC and waits for the end of the socket.
  Task<void> disconnect();
  /// The kernel has let go.
  Task<void> ended();

  /// Takes the disk of whichever server it has away, as `byre serve --disconnect` does: flush(), a
  /// disconnect, and up to `patience` for the server to end by itself, so that its image is closed
  /// when this returns.  What was not written back in that time is lost, and an error says so.
  static Task<void> take_away(Reactor& reactor, std::string path, int64_t patience);

 private:
  NbdDevice(Reactor& reactor, std::string path, Descriptor fd);

  Task<void> set_up(int socket, Disk disk);
  /// Until the disk has its size.
  Task<void> started(uint64_t size);
  Task<void> read_partitions();

  Reactor* reactor_;
  std::string path_;
  Descriptor fd_;
  OwnThread serving_;
  bool attached_ = false;
};

}  // namespace byre
