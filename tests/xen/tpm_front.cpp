// tpm_front HANDLE: a front end of a vTPM that shares no line with the product's, for tests inside a guest. It behaves as
// mini-os's does, which pv-grub measures a kernel with: feature-protocol-v2 before the ring, straight to state 4, and only then
// a wait for the back end; at the end 5, a wait for its 6 or 2, 6, and 1 for the driver that comes after it
// (mini-os, tpmfront.c). Layout of the page: xen/include/public/io/tpmif.h.
//
// Reads lines:
//   HEX            a command, as it should be; prints its answer in hex, or "state N" if there was none
//   locality N     of the commands that follow
//   raw STATE LENGTH EXTRA [COUNT]
//                  the page's head with these values, and a notification, COUNT times; prints the state 300 ms later
//   race COUNT     a command whose length and body change while the back end reads it, COUNT times
//   storm COUNT    a command and CANCEL right behind it, COUNT times
//   notify COUNT   notifications without a cause
//   badref N       connects again with a grant reference that nobody granted, then rightly
//   badport N      connects again with an event channel that is closed, then rightly
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <poll.h>
#include <sstream>
#include <string>
#include <unistd.h>
#include <vector>

extern "C" {
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>
}

namespace {

constexpr std::size_t head_size = 8;
constexpr std::size_t packet_limit = 4096 - head_size;
enum : std::uint8_t { idle = 0, submit = 1, finish = 2, cancel = 3 };
enum : int { initialising = 1, init_wait = 2, connected = 4, closing = 5, closed = 6 };

[[noreturn]] void die(const std::string& why) {
    std::perror(("tpm_front: " + why).c_str());
    std::exit(1);
}

class Front {
  public:
    explicit Front(const std::string& handle)
        : path_("device/vtpm/" + handle) {
        if (xs_ == nullptr || ports_ == nullptr || grants_ == nullptr) {
            die("Xen's devices");
        }
        back_ = read(path_ + "/backend");
        domain_ = std::atoi(read(path_ + "/backend-id").c_str());
    }

    void connect(std::uint32_t added_to_ref = 0, std::uint32_t added_to_port = 0) {
        await({init_wait});
        write("feature-protocol-v2", 1);
        if (page_ == nullptr) {
            page_ = static_cast<volatile std::uint8_t*>(
                xengntshr_share_pages(grants_, static_cast<std::uint32_t>(domain_), 1, &ref_, 1));
            if (page_ == nullptr) {
                die("granting a page");
            }
        }
        std::memset(const_cast<std::uint8_t*>(page_), 0, 4096);
        port_ = xenevtchn_bind_unbound_port(ports_, static_cast<std::uint32_t>(domain_));
        if (port_ < 0) {
            die("an event channel");
        }
        write("ring-ref", ref_ + added_to_ref);
        write("event-channel", static_cast<std::uint32_t>(port_) + added_to_port);
        write("state", connected);
        if (added_to_ref == 0 && added_to_port == 0) {
            await({connected});
        } else {
            ::sleep(1); // long enough to see that nothing comes of it
        }
    }
    void disconnect() {
        write("state", closing);
        await({closed, init_wait});
        write("state", closed);
        await({closed, init_wait});
        xenevtchn_unbind(ports_, static_cast<evtchn_port_t>(port_));
        write("state", initialising);
    }

    void head(std::uint32_t length, std::uint8_t state, std::uint8_t extra) {
        set_length(length);
        page_[5] = locality;
        page_[7] = extra;
        __sync_synchronize();
        page_[4] = state;
    }
    void set_length(std::uint32_t length) { *reinterpret_cast<volatile std::uint32_t*>(page_) = length; }
    void put(const std::vector<std::uint8_t>& command) {
        for (std::size_t i = 0; i < command.size() && i < packet_limit; ++i) {
            page_[head_size + i] = command[i];
        }
    }
    void notify() { xenevtchn_notify(ports_, static_cast<evtchn_port_t>(port_)); }
    [[nodiscard]] int state() const { return page_[4]; }
    [[nodiscard]] std::uint32_t length() const { return *reinterpret_cast<volatile std::uint32_t*>(page_); }
    volatile std::uint8_t* body() { return page_ + head_size; }

    /// Until the page's state is the back end's again, or for so long.
    void wait_answer(int milliseconds) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
        while (state() == submit || state() == cancel) {
            const auto left =
                std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
            if (left <= 0) {
                return;
            }
            pollfd p{xenevtchn_fd(ports_), POLLIN, 0};
            if (::poll(&p, 1, static_cast<int>(left)) > 0) {
                xenevtchn_unmask(ports_, static_cast<evtchn_port_t>(xenevtchn_pending(ports_)));
            }
        }
    }

    std::uint8_t locality = 0;

  private:
    std::string read(const std::string& path) {
        unsigned size = 0;
        void* text = xs_read(xs_, XBT_NULL, path.c_str(), &size);
        if (text == nullptr) {
            return {};
        }
        std::string out(static_cast<char*>(text), size);
        std::free(text);
        return out;
    }
    void write(const std::string& key, std::uint32_t value) {
        const std::string text = std::to_string(value);
        if (!xs_write(xs_, XBT_NULL, (path_ + "/" + key).c_str(), text.data(), static_cast<unsigned>(text.size()))) {
            die(key);
        }
    }
    void await(std::initializer_list<int> states) {
        for (int i = 0; i < 600; ++i) {
            const int now = std::atoi(read(back_ + "/state").c_str());
            for (const int s : states) {
                if (now == s) {
                    return;
                }
            }
            ::usleep(50'000);
        }
        errno = ETIME;
        die("the back end's state " + std::to_string(*states.begin()));
    }

    xs_handle* xs_ = xs_open(0);
    xenevtchn_handle* ports_ = xenevtchn_open(nullptr, 0);
    xengntshr_handle* grants_ = xengntshr_open(nullptr, 0);
    std::string path_, back_;
    int domain_ = 0;
    std::uint32_t ref_ = 0;
    int port_ = -1;
    volatile std::uint8_t* page_ = nullptr;
};

std::vector<std::uint8_t> from_hex(const std::string& text) {
    std::vector<std::uint8_t> out;
    for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
        out.push_back(static_cast<std::uint8_t>(std::stoul(text.substr(i, 2), nullptr, 16)));
    }
    return out;
}

// TPM_PCRRead of PCR 0, answered by both families in their way.
const std::vector<std::uint8_t> harmless = {0, 0xC1, 0, 0, 0, 14, 0, 0, 0, 0x15, 0, 0, 0, 0};
constexpr int patience_ms = 120'000;

void print_state(Front& front) { std::printf("state %d\n", front.state()); }

void execute(Front& front, const std::vector<std::uint8_t>& command) {
    front.put(command);
    front.head(static_cast<std::uint32_t>(command.size()), submit, 0);
    front.notify();
    front.wait_answer(patience_ms);
    const std::uint32_t size = front.length();
    if (front.state() != finish || size > packet_limit) {
        print_state(front);
        return;
    }
    for (std::uint32_t i = 0; i < size; ++i) {
        std::printf("%02x", front.body()[i]);
    }
    std::printf("\n");
}

void obey(Front& front, const std::string& line) {
    std::istringstream words(line);
    std::string word;
    unsigned long a = 0;
    unsigned long b = 0;
    unsigned long c = 0;
    unsigned long count = 1;
    words >> word >> a;
    if (word == "locality") {
        front.locality = static_cast<std::uint8_t>(a);
    } else if (word == "raw") {
        words >> b >> c;
        if (!(words >> count)) {
            count = 1;
        }
        for (unsigned long i = 0; i < count; ++i) {
            front.head(static_cast<std::uint32_t>(b), static_cast<std::uint8_t>(a), static_cast<std::uint8_t>(c));
            front.notify();
        }
        ::usleep(300'000);
        print_state(front);
    } else if (word == "race") {
        for (unsigned long i = 0; i < a; ++i) {
            front.put(harmless);
            front.head(14, submit, 0);
            front.notify();
            while (front.state() == submit) {
                front.set_length(static_cast<std::uint32_t>(i * 0x1001U));
                front.body()[5] = static_cast<std::uint8_t>(i);
                front.body()[2] = 0xFF;
                front.body()[2] = 0;
            }
        }
        print_state(front);
    } else if (word == "storm") {
        for (unsigned long i = 0; i < a; ++i) {
            front.put(harmless);
            front.head(14, submit, 0);
            front.notify();
            front.head(14, cancel, 0);
            front.notify();
        }
        front.wait_answer(patience_ms);
        print_state(front);
    } else if (word == "notify") {
        for (unsigned long i = 0; i < a; ++i) {
            front.notify();
        }
        print_state(front);
    } else if (word == "badref" || word == "badport") {
        const auto added = static_cast<std::uint32_t>(a);
        front.disconnect();
        front.connect(word == "badref" ? added : 0, word == "badport" ? added : 0);
        front.disconnect();
        front.connect();
        print_state(front);
    } else {
        execute(front, from_hex(word));
    }
    std::fflush(stdout);
}

} // namespace

int main(int argc, char** argv) {
    Front front(argc > 1 ? argv[1] : "0");
    front.connect();
    for (std::string line; std::getline(std::cin, line);) {
        obey(front, line);
    }
    front.disconnect();
}
