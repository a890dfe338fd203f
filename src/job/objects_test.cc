// SPDX-License-Identifier: Apache-2.0
#include "job/objects.h"

#include <gtest/gtest.h>

#include <vector>

#include "sim/sim_reactor.h"

namespace byre {
namespace {

std::string said(std::string_view text) {
  Objects objects;
  const Result<void> added = objects.add(text);
  return added ? "" : added.error().message();
}

TEST(Objects, AThrottleGroupHasTheLimitsThatWereGiven) {
  SimReactor reactor(1);
  for (const std::string_view text :
       {"throttle-group,id=g,limits.iops-total=100,limits.iops-total-max=200,"
        "limits.iops-total-max-length=3,limits.bps-read=4096,limits.iops-size=512",
        "qom-type=throttle-group,id=g,x-iops-total=100,x-iops-total-max=200,"
        "x-iops-total-max-length=3,x-bps-read=4096,x-iops-size=512",
        R"({"qom-type":"throttle-group","id":"g","limits":{"iops-total":100,"iops-total-max":200,)"
        R"("iops-total-max-length":3,"bps-read":4096,"iops-size":512}})"}) {
    Objects objects;
    const Result<void> added = objects.add(text);
    ASSERT_TRUE(added) << added.error().message();
    const std::shared_ptr<ThrottleGroup> group = objects.throttle_group("g", reactor);
    ASSERT_TRUE(group);
    const ThrottleLimits& limits = group->limits();
    EXPECT_EQ(limits.iops_total.average, 100u);
    EXPECT_EQ(limits.iops_total.max, 200u);
    EXPECT_EQ(limits.iops_total.max_length, 3u);
    EXPECT_EQ(limits.bps_read.average, 4096u);
    EXPECT_EQ(limits.iops_size, 512u);
    EXPECT_EQ(objects.throttle_group("g", reactor), group);  // Everybody's.
    EXPECT_FALSE(objects.throttle_group("h", reactor));
  }
}

TEST(Objects, AGroupMayHaveNoLimits) {
  SimReactor reactor(1);
  Objects objects;
  ASSERT_TRUE(objects.add(R"({"qom-type":"throttle-group","id":"g","limits":{}})"));
  EXPECT_EQ(objects.throttle_group("g", reactor)->limits().bps_total.average, 0u);
  EXPECT_FALSE(objects.add(R"({"qom-type":"throttle-group","id":"h","limits":1})"));
}

TEST(Objects, AnObjectThatIsUsedIsNotRemoved) {
  SimReactor reactor(1);
  Objects objects;
  ASSERT_TRUE(objects.add("throttle-group,id=g"));
  ASSERT_TRUE(objects.add("secret,id=s,data=x"));
  std::shared_ptr<ThrottleGroup> user = objects.throttle_group("g", reactor);
  const Result<void> refused = objects.remove("g");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(), "object 'g' is in use, can not be deleted");
  user.reset();
  EXPECT_TRUE(objects.remove("g"));
  EXPECT_TRUE(objects.remove("s"));
  const Result<void> again = objects.remove("g");
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().message(), "object 'g' not found");
}

TEST(Objects, WhatIsWrongIsNamed) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"", "Parameter 'qom-type' is missing"},
      {"{", "Could not parse the JSON options"},
      {"throttle-group", "Parameter 'id' is missing"},
      {"throttle-group,id=1", "Parameter 'id' expects an identifier"},
      {"throttle-group,id=", "Parameter 'id' expects an identifier"},
      {"foo,id=g", "Parameter 'qom-type' does not accept value 'foo'"},
      {"tls-creds-x509,id=g,dir=x", "--object tls-creds-x509 is not supported"},
      {"throttle-group,id=g,foo=1", "Parameter 'foo' is unexpected"},
      {"throttle-group,id=g,iops-total=1", "Parameter 'iops-total' is unexpected"},
      {"throttle-group,id=g,limits.foo=1", "Parameter 'limits.foo' is unexpected"},
      {"throttle-group,id=g,limits.iops-total=1k", "Parameter 'limits.iops-total' expects integer"},
      {"throttle-group,id=g,x-iops-total=-1", "Parameter 'x-iops-total' expects integer"},
      {"throttle-group,id=g,x-iops-total=1,limits.iops-total=1", "are the same limit"},
      {"throttle-group,id=g,limits.iops-total=1,limits.iops-read=1", "iops"},
      {R"({"qom-type":"throttle-group","id":5})",
       "Invalid parameter type for 'id', expected: string"},
  };
  for (const auto& [text, want] : cases) {
    EXPECT_NE(said(text).find(want), std::string::npos) << text << ": " << said(text);
  }
  Objects objects;
  ASSERT_TRUE(objects.add("throttle-group,id=g"));
  ASSERT_TRUE(objects.add("throttle-group,id=h"));
  const Result<void> twice = objects.add("throttle-group,id=g");
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().message(),
            "attempt to add duplicate property 'g' to object (type 'container')");
}

}  // namespace
}  // namespace byre
