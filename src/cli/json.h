// SPDX-License-Identifier: Apache-2.0
/// JSON laid out as qemu-img prints it, and the indented listing it makes of the same values for
/// people.
///
/// A Json is a value: null, a boolean, a number, text, a list or an object, whose keys stay in the
/// order in which they were put in.  It is byre's own class because every command makes some: a
/// general JSON library in each of their files doubles the time that it takes to compile it, and
/// its writer prints empty lists on one line, other escapes, and throws at text that is not UTF-8.
/// Here such bytes come out as \ufffd, so the output is always valid JSON.
/// Cost: keys are searched one by one; objects here have a few dozen.
/// Not here: parsing, which only job/option_tree.cc needs.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace byre {

class Json {
 public:
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;

  Json();  ///< null
  Json(const Json& other);
  Json(Json&& other) noexcept;
  Json& operator=(Json other) noexcept;
  ~Json();

  template <std::integral T>
  Json(T value) {
    if constexpr (std::same_as<T, bool>) {
      set_boolean(value);
    } else if constexpr (std::unsigned_integral<T>) {
      set_number(uint64_t{value});
    } else {
      set_number(int64_t{value});
    }
  }
  Json(std::string value);
  Json(std::string_view value);
  Json(const char* value);
  Json(const std::vector<std::string>& values);
  /// Pairs of a key and a value make an object; anything else makes an array.
  Json(std::initializer_list<Json> values);
  static Json array();
  static Json object();

  /// These must be called on a value of that kind.
  bool boolean() const;
  uint64_t number() const;  ///< One that was made of an unsigned integer.
  const std::string& string() const;
  const Array& elements() const;
  const Object& members() const;

  /// Of an object: the value of `key`, null when it was not there.  Null becomes an object.
  Json& operator[](std::string_view key);
  /// Of an object: the value of a key that is there.
  const Json& operator[](std::string_view key) const;
  bool contains(std::string_view key) const;
  /// Of an array.
  void push_back(Json value);

 private:
  friend class JsonWriter;
  template <class T>
  const T& get() const;
  const Json* find(std::string_view key) const;
  void set_boolean(bool value);
  void set_number(uint64_t value);
  void set_number(int64_t value);

  std::variant<std::nullptr_t, bool, uint64_t, int64_t, std::string, Array, Object> value_;
};

struct Json::Member {
  std::string key;
  Json value;
};

/// Four spaces a level; everything that is not printable ASCII is escaped.
std::string to_json(const Json& value);
/// The same in one line, without its end.
std::string to_json_line(const Json& value);

/// One line a value, "key: value", dashes in keys shown as spaces, lists numbered; `indent` levels
/// of four spaces in front.
std::string to_listing(const Json& value, int indent);

}  // namespace byre
