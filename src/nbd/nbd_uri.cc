// SPDX-License-Identifier: Apache-2.0
#include "nbd/nbd_uri.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
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

Error bad_name(std::string_view name, std::string_view why) {
  return invalid("NBD name ", quoted(name), ": ", why);
}

Result<std::string> percent_decoded(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? digit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? digit(text[i + 2]) : -1;
    if (high < 0 || low < 0 || (high == 0 && low == 0)) {
      return bad_name(text, "a % needs two hexadecimal digits behind it, not 00");
    }
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

Result<uint16_t> parse_port(std::string_view name, std::string_view text) {
  uint16_t port = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (failed != std::errc() || end != text.data() + text.size() || port == 0) {
    return bad_name(name, cat(quoted(text), " is no port"));
  }
  return port;
}

/// HOST[:PORT], where an IPv6 address has brackets.
Result<void> parse_host(std::string_view name, std::string_view text, Uri& uri) {
  std::string_view rest;
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    if (end == std::string_view::npos) return bad_name(name, "a bracket is not closed");
    uri.host = text.substr(1, end - 1);
    rest = text.substr(end + 1);
    if (!rest.empty() && rest[0] != ':') return bad_name(name, "something is behind the bracket");
  } else {
    const size_t colon = std::min(text.find(':'), text.size());
    uri.host = text.substr(0, colon);
    rest = text.substr(colon);
  }
  if (rest.size() <= 1) return {};
  BYRE_TRY(port, parse_port(name, rest.substr(1)));
  uri.port = port;
  return {};
}

/// nbd:unix:PATH, nbd:HOST:PORT.
Result<Uri> parse_old_name(std::string_view name) {
  constexpr std::string_view kExport = ":exportname=";
  std::string_view rest = name.substr(4);
  Uri uri{.host = {}, .port = 0};
  if (const size_t at = rest.find(kExport); at != std::string_view::npos) {
    uri.export_name = rest.substr(at + kExport.size());
    rest = rest.substr(0, at);
  }
  if (rest.starts_with("unix:")) {
    uri.socket = std::string(rest.substr(5));
    if (uri.socket->empty()) return bad_name(name, "the path of the socket is missing");
    return uri;
  }
  if (Result<void> host = parse_host(name, rest, uri); !host) return std::move(host).error();
  if (uri.host.empty() || uri.port == 0) return bad_name(name, "host and port are missing");
  return uri;
}

}  // namespace

bool looks_like_uri(std::string_view name) {
  for (const std::string_view prefix : {"nbd:", "nbd+tcp:", "nbd+unix:", "nbds:", "nbds+unix:"}) {
    if (name.starts_with(prefix)) return true;
  }
  return false;
}

Result<Uri> parse_uri(std::string_view name) {
  if (name.starts_with("nbds")) return unsupported("NBD name ", quoted(name), ": there is no TLS");
  const size_t scheme = name.find("://");
  const bool is_unix = name.starts_with("nbd+unix:");
  const bool is_uri = scheme != std::string_view::npos && name.find(':') == scheme;
  if (!is_uri && name.starts_with("nbd:")) return parse_old_name(name);
  if (!is_uri) return bad_name(name, "it is no URI");

  std::string_view rest = name.substr(scheme + 3);
  if (rest.find('#') != std::string_view::npos) return bad_name(name, "it has a fragment");
  const size_t question = std::min(rest.find('?'), rest.size());
  std::string_view query = rest.substr(question);
  if (!query.empty()) query.remove_prefix(1);
  rest = rest.substr(0, question);
  const size_t slash = std::min(rest.find('/'), rest.size());
  const std::string_view server = rest.substr(0, slash);
  Uri uri{.host = {}, .port = kDefaultPort};
  if (slash < rest.size()) {
    BYRE_TRY(export_name, percent_decoded(rest.substr(slash + 1)));
    uri.export_name = std::move(export_name);
  }
  if (is_unix) {
    constexpr std::string_view kSocket = "socket=";
    if (!server.empty()) return bad_name(name, "a socket has no host");
    if (!query.starts_with(kSocket) || query.find('&') != std::string_view::npos) {
      return bad_name(name, "?socket=PATH is missing, or something is beside it");
    }
    BYRE_TRY(path, percent_decoded(query.substr(kSocket.size())));
    if (path.empty()) return bad_name(name, "the path of the socket is missing");
    uri.socket = std::move(path);
    return uri;
  }
  if (!query.empty()) return bad_name(name, "a host has nothing behind '?'");
  if (server.find('@') != std::string_view::npos) return bad_name(name, "there are no users");
  if (Result<void> host = parse_host(name, server, uri); !host) return std::move(host).error();
  if (uri.host.empty()) uri.host = "localhost";
  return uri;
}

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
