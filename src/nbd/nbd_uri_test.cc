// SPDX-License-Identifier: Apache-2.0
#include "nbd/nbd_uri.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace byre::nbd {
namespace {

TEST(NbdUri, NamesASocketByItsWholePath) {
  EXPECT_EQ(unix_uri("/run/disk.sock", "").text(), "nbd+unix:///?socket=/run/disk.sock");
  EXPECT_EQ(unix_uri("/run/disk.sock", "daily").text(), "nbd+unix:///daily?socket=/run/disk.sock");
  const std::string here = std::filesystem::current_path();
  EXPECT_EQ(unix_uri("disk.sock", "").socket, here + "/disk.sock");
}

TEST(NbdUri, NamesAHostAndAPort) {
  EXPECT_EQ(tcp_uri("127.0.0.1", 10809, "").text(), "nbd://127.0.0.1:10809/");
  EXPECT_EQ(tcp_uri("example.org", 1, "a/b").text(), "nbd://example.org:1/a/b");
}

TEST(NbdUri, PutsAnIPv6AddressInBrackets) {
  EXPECT_EQ(tcp_uri("fe80::1", 10809, "").text(), "nbd://[fe80::1]:10809/");
  EXPECT_EQ(tcp_uri("fe80::1", 10809, "").host, "fe80::1");
}

TEST(NbdUri, SaysTheLoopbackWhereTheServerListensEverywhere) {
  EXPECT_EQ(tcp_uri("0.0.0.0", 7, "").text(), "nbd://127.0.0.1:7/");
  EXPECT_EQ(tcp_uri("::", 7, "").text(), "nbd://[::1]:7/");
}

TEST(NbdUri, EncodesEachByteThatAUriReserves) {
  std::string every;
  for (int byte = 1; byte < 256; ++byte) every += static_cast<char>(byte);
  const std::string text = tcp_uri("h", 1, every).text();
  constexpr std::string_view kHost = "nbd://h:1/";
  ASSERT_TRUE(text.starts_with(kHost));
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string decoded;
  for (size_t at = kHost.size(); at < text.size(); ++at) {
    if (text[at] == '%') {
      decoded += static_cast<char>(kHex.find(text[at + 1]) * 16 + kHex.find(text[at + 2]));
      at += 2;
      continue;
    }
    EXPECT_TRUE(isalnum(static_cast<unsigned char>(text[at])) ||
                std::string_view("-._~/").find(text[at]) != std::string_view::npos)
        << text[at];
    decoded += text[at];
  }
  EXPECT_EQ(decoded, every);
  EXPECT_EQ(unix_uri("/a b?&%#/ü", "").text(), "nbd+unix:///?socket=/a%20b%3F%26%25%23/%C3%BC");
}

TEST(NbdUri, ReadsWhatItSays) {
  for (const Uri& uri : {tcp_uri("example.org", 1, "a/b"), tcp_uri("fe80::1", 10809, ""),
                         unix_uri("/a b?&%#/ü", "x y"), unix_uri("/s", "")}) {
    const Result<Uri> read = parse_uri(uri.text());
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(read->text(), uri.text());
    EXPECT_EQ(read->socket, uri.socket);
    EXPECT_EQ(read->host, uri.host);
    EXPECT_EQ(read->export_name, uri.export_name);
  }
}

TEST(NbdUri, ReadsEverySpelling) {
  const std::pair<const char*, const char*> spellings[] = {
      {"nbd://host", "nbd://host:10809/"},
      {"nbd://host:7/x", "nbd://host:7/x"},
      {"nbd+tcp://host/a%2fb", "nbd://host:10809/a/b"},
      {"nbd://", "nbd://localhost:10809/"},
      {"nbd:host:7", "nbd://host:7/"},
      {"nbd:[::1]:7:exportname=a:b", "nbd://[::1]:7/a%3Ab"},
      {"nbd:unix:/s:exportname=x", "nbd+unix:///x?socket=/s"},
      {"nbd:unix:/s", "nbd+unix:///?socket=/s"},
      {"nbd+unix:///x?socket=/a%20b", "nbd+unix:///x?socket=/a%20b"},
  };
  for (const auto& [name, text] : spellings) {
    EXPECT_TRUE(looks_like_uri(name));
    const Result<Uri> read = parse_uri(name);
    ASSERT_TRUE(read) << name << ": " << read.error().message();
    EXPECT_EQ(read->text(), text);
  }
}

TEST(NbdUri, RefusesWhatMakesNoSense) {
  for (const char* name : {"nbd:",
                           "nbd:host",
                           "nbd:host:0",
                           "nbd:host:65536",
                           "nbd:host:x",
                           "nbd:unix:",
                           "nbd://h:x/",
                           "nbd://[::1",
                           "nbd://[::1]x",
                           "nbd://u@h/",
                           "nbd://h/?a=b",
                           "nbd://h/#f",
                           "nbd+unix:///x",
                           "nbd+unix://host/?socket=/s",
                           "nbd+unix:///?socket=",
                           "nbd+unix:///?socket=/s&x=1",
                           "nbd+unix:///?socket=%0",
                           "nbd://h/%00",
                           "nbd://h/%zz",
                           "nbd+unix:/x",
                           "nbds://h/",
                           "file"}) {
    EXPECT_FALSE(parse_uri(name)) << name;
  }
}

TEST(NbdUri, KnowsTheAddressesThatOnlyThisMachineReaches) {
  for (const char* address : {"localhost", "::1", "127.0.0.1", "127.1.2.3"})
    EXPECT_TRUE(is_loopback(address)) << address;
  for (const char* address : {"0.0.0.0", "::", "192.168.127.1", "example.org", ""})
    EXPECT_FALSE(is_loopback(address)) << address;
}

}  // namespace
}  // namespace byre::nbd
