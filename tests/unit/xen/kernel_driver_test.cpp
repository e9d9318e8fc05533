#include "xen/kernel_driver.hpp"

#include "check.hpp"

#include <filesystem>

namespace xen_kernel_driver_test {

using namespace vtpmd;

TEST_SUITE("xen") {
    TEST_CASE("a device that the kernel's driver has is not taken; another, or one that nobody has, is") {
        std::string devices = "/tmp/vtpmd-sysfs-XXXXXX";
        REQUIRE(::mkdtemp(devices.data()) != nullptr);
        std::filesystem::create_directories(devices + "/vtpm-0/driver");
        std::filesystem::create_directories(devices + "/vtpm-1");
        const auto refused = xen::not_the_kernels(0, "", devices);
        CHECK(refused.error().code == Errc::permission);
        CHECK(refused.error().message.find("echo vtpm-0 >/sys/bus/xen/drivers/vtpm/unbind") != std::string::npos);
        CHECK(xen::not_the_kernels(1, "", devices));
        CHECK(xen::not_the_kernels(2, "", devices));
        std::filesystem::remove_all(devices);
        CHECK(xen::not_the_kernels(0, "", devices));
    }
}

} // namespace xen_kernel_driver_test
