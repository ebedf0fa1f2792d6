# Apus. `make` builds, `make demo` shows, `make test` proves.
SWIFT_BUILD = swift build -c release
export SWIFT_BACKTRACE = enable=no

.PHONY: all build build-tests test unit-test domain-test test-debian test-install fuzz soak check format demo bench bench-cpu bench-disk bench-engine
.PHONY: bench-domains bench-install bench-ioreq bench-net clean

all: build

# The programs are always optimised: an unoptimised engine is of no use to anybody.
build:
	@scripts/install-packages build
	$(SWIFT_BUILD) --product xl
	$(SWIFT_BUILD) --product hypervisor
	$(SWIFT_BUILD) --product device-model
	$(SWIFT_BUILD) --product xenstored
	$(SWIFT_BUILD) --product backend
	$(SWIFT_BUILD) --product network

# Tests are built for debugging: quick to compile, and overflow or bounds mistakes trap in all of them.
build-tests:
	@scripts/install-packages build test
	swift build --build-tests

# Everything: units, contracts, scripts, and real guests.
test: build build-tests
	@scripts/install-packages demo
	@scripts/guests installer linux linux32 linux32-classic
	@scripts/xen-tools
	swift test --skip-build

# What needs no guest and takes seconds.
unit-test: build-tests
	swift test --skip-build --skip DomainTests

domain-test: build build-tests
	@scripts/install-packages demo
	@scripts/guests installer linux linux32 linux32-classic
	@scripts/xen-tools
	swift test --skip-build --filter DomainTests

# A whole Debian on two processors, with 20 minutes of work that must always find the same. Half an hour; needs root.
test-debian: build build-tests
	@scripts/install-packages demo debian
	@scripts/guests debian
	APUS_DEBIAN=1 swift test --skip-build --filter DebianTests

# A Debian that installs itself from the machine's mirror onto an emulated disk. Ten minutes; needs root and the network.
test-install: build build-tests
	@scripts/install-packages demo debian
	@scripts/guests netinst
	APUS_INSTALL=1 swift test --skip-build --filter InstallTests

# Devices, back ends and the whole board under guests that do anything, APUS_FUZZ_SECONDS each (nine of them).
fuzz: build-tests
	APUS_FUZZ_SECONDS=$${APUS_FUZZ_SECONDS:-60} swift test --skip-build --filter 'FuzzTests|BoardTests/fuzz'

# Random code on interpreter, translator and host: optimised, APUS_CASES for each of the suites (some twenty).
soak:
	@scripts/install-packages build test
	APUS_TEST_TARGET=ProcessorTests swift build -c release -Xswiftc -enable-testing --scratch-path .build/soak \
		--build-tests
	APUS_TEST_TARGET=ProcessorTests APUS_CASES=$${APUS_CASES:-50000} swift test -c release -Xswiftc -enable-testing \
		--scratch-path .build/soak --skip-build --filter DifferentialTests

check:
	swift format lint --strict --recursive Sources Tests Package.swift
	scripts/check-imports
	scripts/check-hot-symbols

format:
	swift format --in-place --recursive Sources Tests Package.swift

demo: build
	@scripts/install-packages demo
	@scripts/guests installer
	@scripts/demo

bench: build
	@scripts/install-packages demo test
	@scripts/guests linux linux32 installer-serial
	@scripts/bench

# The CPU engine against QEMU's TCG, its own interpreter and the host.
bench-cpu: build
	@scripts/install-packages demo test bench
	@scripts/guests bench
	@scripts/bench-cpu

# Disks: PV and emulated against QEMU's TCG and the host's own file.
bench-disk: build
	@scripts/install-packages demo test bench
	@scripts/guests disk
	@scripts/bench-disk

# What idle domains cost, eight of a kind side by side.
bench-domains: build
	@scripts/install-packages demo test
	@scripts/guests linux
	@scripts/bench-domains

# Networks: PV and emulated, in turn.
bench-net: build
	@scripts/install-packages demo test
	@scripts/guests linux
	@scripts/bench-net

# That installation's time, phase by phase, beside QEMU's TCG. Root, the network; half an hour and more.
bench-install: build
	@scripts/install-packages demo bench debian
	@scripts/guests netinst
	@scripts/bench-install

# Speed of the engine alone on small loops.
bench-engine:
	$(SWIFT_BUILD) --product engine-bench
	.build/release/engine-bench

# A round trip to the device model's process and back.
bench-ioreq:
	$(SWIFT_BUILD) --product ioreq-bench
	.build/release/ioreq-bench

clean:
	rm -rf .build
