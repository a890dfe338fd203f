// SPDX-License-Identifier: Apache-2.0
/// Types of arguments and results: the one description of each, which parses, refuses and
/// documents.
///
/// A struct of arguments is described by a function beside it:
///
///     struct BlockdevDel { std::string node; };
///     const Struct& definition_of(const BlockdevDel*) {
///       static const Struct kStruct({field("node-name", &BlockdevDel::node, "which")});
///       return kStruct;
///     }
///
/// Members are text, booleans, numbers, Json (anything), enumerations, other structs, vectors of
/// these, and std::optional of any: that may be left out, like one that has a default().
/// A struct whose members depend on one of them, an enumeration, has a `tag` and variants.
/// Numbers and booleans that come from a command line are texts; Place says so.
/// Invariant: what was read has every member that is needed, of its type, and no other; what is
/// refused is refused in QEMU's words.
/// Cost: members are found one by one in the object's map.
/// Not here: commands (qmp_command.h), the list of all types (qmp_schema.h).
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "daemon/qmp_json.h"

namespace byre::qmp {

/// Where a value stands, for messages, and how it was written.
struct Place {
  std::string path;         ///< "addr.data.path"; empty: the arguments themselves.
  bool from_words = false;  ///< A command line: all that is no group is text.
  Place member(std::string_view name) const {
    return {path.empty() ? std::string(name) : cat(path, ".", name), from_words};
  }
  Place element(size_t index) const { return {cat(path, "[", index, "]"), from_words}; }
};

/// "Invalid parameter type for 'x', expected: string"
Error wrong_type(const Place& place, std::string_view expected);
Error missing(const Place& place);
Error unexpected(const Place& place);

class Type {
 public:
  enum class Kind : uint8_t {
    text,
    boolean,
    integer,
    number,
    null,
    any,
    enumeration,
    array,
    object,
    alternate,
  };
  explicit Type(Kind k) : kind(k) {}
  virtual ~Type() = default;
  Type(const Type&) = delete;

  const Kind kind;

  static const Type& text();
  static const Type& boolean();
  static const Type& integer();
  static const Type& number();
  static const Type& null();
  static const Type& any();
};

class Enumeration : public Type {
 public:
  explicit Enumeration(std::vector<std::string> v, std::map<std::string, std::string> r = {})
      : Type(Kind::enumeration), values(std::move(v)), refused(std::move(r)) {}
  const std::vector<std::string> values;
  /// QEMU's, which are refused here, and why; nobody is told of them before.
  const std::map<std::string, std::string> refused;
  /// The index of `value`.
  Result<size_t> read(const Json& value, const Place& place) const;
};

class Array : public Type {
 public:
  explicit Array(const Type& e) : Type(Kind::array), element(e) {}
  const Type& element;
};

/// Called when a type is needed, since types may lead back to themselves.
using TypeFunction = const Type& (*)();

/// One of several types that differ at first sight.
class Alternate : public Type {
 public:
  explicit Alternate(std::string n, std::vector<TypeFunction> b)
      : Type(Kind::alternate), name(std::move(n)), branches(std::move(b)) {}
  const std::string name;  ///< For messages.
  const std::vector<TypeFunction> branches;
};

/// A member of a struct.
struct Field {
  std::string_view name;
  std::string_view help;
  bool optional = false;
  bool hidden = false;  ///< Taken, but not listed in the schema: something else refuses it.
  TypeFunction type = nullptr;
  /// Or this, where it is not known at compile time.
  const Type* known = nullptr;
  /// Puts the value into the struct behind the pointer; empty: of a result, or only looked at.
  std::function<Result<void>(void* object, const Json& value, const Place& place)> store = {};

  const Type& type_of() const { return known ? *known : type(); }
};

/// What a struct has besides when its tag has this value.
struct Variant {
  std::string value;
  std::vector<Field> fields;
};

class Struct : public Type {
 public:
  explicit Struct(std::vector<Field> f, std::string_view t = {}, std::vector<Variant> v = {})
      : Type(Kind::object), fields(std::move(f)), tag(t), variants(std::move(v)) {}
  const std::vector<Field> fields;
  const std::string_view tag;
  const std::vector<Variant> variants;

  Result<void> read(const Json& value, const Place& place, void* object) const;
  /// Only whether it could be read.
  Result<void> check(const Json& value, const Place& place) const;

 private:
  Result<void> read_field(const Field& field, const Json& value, const Place& place,
                          void* object) const;
};

/// Looks whether `value` has the type, and stores nothing.
Result<void> check_type(const Type& type, const Json& value, const Place& place);

// --- C++ types -----------------------------------------------------------------------------------

template <class T>
struct Described;

/// Structs and enumerations, by definition_of().
template <class T>
concept HasStruct = requires(const T* t) {
  { definition_of(t) } -> std::convertible_to<const Struct&>;
};
template <class T>
concept HasEnumeration = std::is_enum_v<T> && requires(const T* t) {
  { definition_of(t) } -> std::convertible_to<const Enumeration&>;
};

template <class T>
const Type& type_of() {
  return Described<T>::type();
}

template <>
struct Described<std::string> {
  static const Type& type() { return Type::text(); }
  static Result<void> read(const Json& value, const Place& place, std::string& to);
};
template <>
struct Described<bool> {
  static const Type& type() { return Type::boolean(); }
  static Result<void> read(const Json& value, const Place& place, bool& to);
};
template <>
struct Described<int64_t> {
  static const Type& type() { return Type::integer(); }
  static Result<void> read(const Json& value, const Place& place, int64_t& to);
};
template <>
struct Described<uint32_t> {
  static const Type& type() { return Type::integer(); }
  static Result<void> read(const Json& value, const Place& place, uint32_t& to);
};
template <>
struct Described<uint64_t> {
  static const Type& type() { return Type::integer(); }
  static Result<void> read(const Json& value, const Place& place, uint64_t& to);
};
template <>
struct Described<Json> {
  static const Type& type() { return Type::any(); }
  static Result<void> read(const Json& value, const Place&, Json& to) {
    to = value;
    return {};
  }
};
template <HasStruct T>
struct Described<T> {
  static const Type& type() { return definition_of(static_cast<const T*>(nullptr)); }
  static Result<void> read(const Json& value, const Place& place, T& to) {
    return definition_of(static_cast<const T*>(nullptr)).read(value, place, &to);
  }
};
template <HasEnumeration T>
struct Described<T> {
  static const Type& type() { return definition_of(static_cast<const T*>(nullptr)); }
  static Result<void> read(const Json& value, const Place& place, T& to) {
    BYRE_TRY(index, definition_of(static_cast<const T*>(nullptr)).read(value, place));
    to = static_cast<T>(index);
    return {};
  }
};
template <class T>
struct Described<std::vector<T>> {
  static const Type& type() {
    static const Array kArray(type_of<T>());
    return kArray;
  }
  static Result<void> read(const Json& value, const Place& place, std::vector<T>& to) {
    // On a command line a list is a group with the keys 0, 1, ...
    const bool is_list = value.is_array() || (place.from_words && value.is_object());
    if (!is_list) return wrong_type(place, "array");
    size_t index = 0;
    for (const Json& element : value) {
      if (Result<void> read =
              Described<T>::read(element, place.element(index++), to.emplace_back());
          !read) {
        return read;
      }
    }
    return {};
  }
};
template <class T>
struct Described<std::optional<T>> {
  static const Type& type() { return type_of<T>(); }
  static Result<void> read(const Json& value, const Place& place, std::optional<T>& to) {
    return Described<T>::read(value, place, to.emplace());
  }
};

template <class T>
inline constexpr bool kIsOptional = false;
template <class T>
inline constexpr bool kIsOptional<std::optional<T>> = true;

/// A member that must be there, unless it is an std::optional.
template <class S, class T>
Field field(std::string_view name, T S::* member, std::string_view help) {
  return {.name = name,
          .help = help,
          .optional = kIsOptional<T>,
          .type = [] -> const Type& { return type_of<T>(); },
          .store =
              [member](void* object, const Json& value, const Place& place) {
                return Described<T>::read(value, place, static_cast<S*>(object)->*member);
              }};
}
/// One that keeps what the struct has when it is left out.
template <class S, class T>
Field with_default(std::string_view name, T S::* member, std::string_view help) {
  Field made = field(name, member, help);
  made.optional = true;
  return made;
}
/// A member of a result: described, never read.
template <class T>
Field result_field(std::string_view name, std::string_view help, bool optional = false) {
  return {.name = name, .help = help, .optional = optional, .type = [] -> const Type& {
            return type_of<T>();
          }};
}

}  // namespace byre::qmp
