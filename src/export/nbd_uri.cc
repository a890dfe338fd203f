// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_uri.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <utility>

#include "base/cat.h"

namespace byre::nbd {

namespace {

std::string percent_encoded(std::string_view text) {
  std::string out;
  for (char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~/").find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<uint8_t>(c));
  }
  return out;
}

std::string absolute(const std::string& path) {
  if (path.starts_with('/')) return path;
  const std::unique_ptr<char, void (*)(void*)> folder(getcwd(nullptr, 0), free);
  return folder ? cat(folder.get(), "/", path) : path;
}

}  // namespace

std::string Uri::text() const {
  const std::string name = percent_encoded(export_name);
  if (socket) return cat("nbd+unix:///", name, "?socket=", percent_encoded(*socket));
  const bool v6 = host.find(':') != std::string::npos;
  return cat("nbd://", v6 ? cat("[", host, "]") : host, ":", port, "/", name);
}

Uri unix_uri(const std::string& path, std::string export_name) {
  return {.socket = absolute(path), .export_name = std::move(export_name)};
}

Uri tcp_uri(const std::string& address, uint16_t port, std::string export_name) {
  return {.host = address == "0.0.0.0" ? "127.0.0.1"
                  : address == "::"    ? "::1"
                                       : address,
          .port = port,
          .export_name = std::move(export_name)};
}

bool is_loopback(std::string_view address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

}  // namespace byre::nbd
