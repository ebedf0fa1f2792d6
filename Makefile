# Apus. `make` builds, `make demo` shows, `make test` proves.
CONFIGURATION ?= release
SWIFT_BUILD = swift build -c $(CONFIGURATION)
export SWIFT_BACKTRACE = enable=no

.PHONY: all build test unit-test domain-test check format demo bench clean

all: build

build:
	@scripts/install-packages build
	$(SWIFT_BUILD) --product xl
	$(SWIFT_BUILD) --product hypervisor
	$(SWIFT_BUILD) --product device-model

# Everything: units, contracts, scripts, and real guests.
test:
	@scripts/install-packages build demo test
	@scripts/guests installer linux
	$(SWIFT_BUILD) --build-tests
	swift test -c $(CONFIGURATION) --skip-build

# What needs no guest and takes seconds.
unit-test:
	@scripts/install-packages build
	$(SWIFT_BUILD) --build-tests
	swift test -c $(CONFIGURATION) --skip-build --skip DomainTests

domain-test:
	@scripts/install-packages build demo test
	@scripts/guests installer linux
	$(SWIFT_BUILD) --build-tests
	swift test -c $(CONFIGURATION) --skip-build --filter DomainTests

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
	@scripts/guests linux
	@scripts/bench

clean:
	rm -rf .build
