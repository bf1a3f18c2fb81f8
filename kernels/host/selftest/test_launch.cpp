// Launches that must be refused, each with a message that says why.
#include <thread>

#include "check.h"

namespace {

void refused(const std::string& message, const char* because) {
  check(message.find(because) != std::string::npos, std::string("refusal should say '") + because + "', says '" + message + "'");
}

// Rust runs tests on threads of its own: the fibers of one must work for the next.
void from_two_threads() {
  auto launches = [](std::string& wrong) {
    Device<float> x(64), out(3);
    for (int i = 0; i < 64; i++) x[i] = 2.0f;
    for (uint64_t seed = 0; seed < 20; seed++) {
      std::string message = launch("selftest_reduce", {1, 64, 128}, seed, out.get(), x.get());
      if (!message.empty() || out[0] != 128 || out[1] != 2 || out[2] != 64) wrong = "two threads that launch: " + message;
    }
  };
  std::string wrong[2];
  std::thread one(launches, std::ref(wrong[0])), two(launches, std::ref(wrong[1]));
  one.join();
  two.join();
  for (auto& message : wrong) check(message.empty(), message);
}

}  // namespace

void test_launch() {
  from_two_threads();
  Device<float> out(512);
  auto launch_speed = [&](Shape shape) { return launch("selftest_speed", shape, 1, out.get(), 1); };
  refused(launch("no_such_kernel", {1, 32}, 1, 0), "no kernel no_such_kernel");
  refused(launch("selftest_speed", {1, 32}, 1, out.get()), "takes 2 arguments, got 1");
  refused(launch("selftest_speed", {1, 32}, 1, out.get(), 1, 2), "takes 2 arguments, got 3");
  refused(launch("selftest_speed", {1, 32}, 1, out.get(), 1LL), "argument 1 has 8 bytes, the parameter 4");
  refused(launch_speed({dim3(0), dim3(32)}), "empty grid");
  refused(launch_speed({dim3(1, 0), dim3(32)}), "empty grid");
  refused(launch_speed({dim3(1, 65536), dim3(32)}), "grid 1x65536x1");
  refused(launch_speed({dim3(1), dim3(0)}), "empty block");
  refused(launch_speed({dim3(1), dim3(1025)}), "over 1024 threads");
  refused(launch_speed({dim3(1), dim3(1, 1, 65)}), "over 1024 threads");
  refused(launch_speed({dim3(1), dim3(0x10000, 0x10000)}), "over 1024 threads");
  refused(launch_speed({dim3(1), dim3(288)}), "__launch_bounds__(256)");
  refused(launch_speed({dim3(1), dim3(256), (227 << 10) + 1}), "227 KiB");
  check(launch_speed({dim3(2), dim3(256), 227 << 10}).empty(), "the greatest launch is not refused");

  auto address = [](void* p) { return reinterpret_cast<uintptr_t>(p); };
  for (size_t bytes : {0, 1, 3, 256, 1000}) {
    auto* memory = static_cast<unsigned char*>(mpa_host_alloc(bytes));
    check(memory && address(memory) % 256 == 0, "mpa_host_alloc aligns to 256 bytes");
    for (size_t i = 0; i < bytes; i++) check(memory[i] == 0xff, "mpa_host_alloc fills with 0xff");
    mpa_host_free(memory);
  }
}
