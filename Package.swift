// swift-tools-version: 6.2
import PackageDescription

let language: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .treatAllWarnings(as: .error),
]
/// Every module but the three below: each unsafe expression carries its mark.
let strict = language + [.strictMemorySafety()]
/// `Host`, `Ioreq` and `Processor` are the modules that own raw memory (docs/decisions/0001.md).
let raw = language

let package = Package(
    name: "apus",
    products: [
        .executable(name: "xl", targets: ["xl"]),
        .executable(name: "hypervisor", targets: ["hypervisor"]),
        .executable(name: "device-model", targets: ["device-model"]),
        .executable(name: "xenstored", targets: ["xenstored"]),
        .executable(name: "backend", targets: ["backend"]),
        .executable(name: "network", targets: ["network"]),
    ],
    targets: [
        // Host: what Apus asks of Linux and of C libraries.
        .target(name: "CHost", path: "Sources/Host/CHost"),
        .target(name: "Host", dependencies: ["CHost"], path: "Sources/Host/Host", swiftSettings: raw),
        .target(
            name: "DomainProcess", dependencies: ["Host"], path: "Sources/Host/DomainProcess", swiftSettings: strict),
        .systemLibrary(name: "CXen", path: "Sources/Host/CXen", providers: [.apt(["libxen-dev"])]),
        .systemLibrary(
            name: "CVNC", path: "Sources/Host/CVNC", pkgConfig: "libvncserver", providers: [.apt(["libvncserver-dev"])]),
        .systemLibrary(name: "CAIO", path: "Sources/Host/CAIO", providers: [.apt(["libaio-dev"])]),

        // Hypervisor.
        .target(name: "Registers", path: "Sources/Hypervisor/Registers", swiftSettings: strict),
        .target(
            name: "Machine", path: "Sources/Hypervisor/Machine", swiftSettings: strict),
        .target(
            name: "Ioreq", dependencies: ["CHost", "CXen", "Host"], path: "Sources/Hypervisor/Ioreq", swiftSettings: raw
        ),
        .systemLibrary(
            name: "CCompression", path: "Sources/Host/CCompression",
            providers: [.apt(["zlib1g-dev", "liblzma-dev", "libzstd-dev", "liblz4-dev"])]),
        .target(
            name: "DomainBuilder", dependencies: ["CCompression", "CXen"], path: "Sources/Hypervisor/DomainBuilder",
            swiftSettings: strict),
        .target(name: "CProcessor", path: "Sources/Hypervisor/CProcessor"),
        .target(
            name: "Processor", dependencies: ["CProcessor"], path: "Sources/Hypervisor/Processor", swiftSettings: raw),
        .target(
            name: "Chips", dependencies: ["Machine", "Registers"], path: "Sources/Hypervisor/Chips",
            swiftSettings: strict),
        .target(
            name: "Kernel",
            dependencies: [
                "Chips", "CProcessor", "CXen", "DomainBuilder", "DomainConfig", "DomainProcess", "Host", "Ioreq",
                "Machine", "Processor",
            ],
            path: "Sources/Hypervisor/Kernel", swiftSettings: strict),
        .executableTarget(
            name: "hypervisor", dependencies: ["DomainProcess", "Host", "Kernel"],
            path: "Sources/Hypervisor/hypervisor", swiftSettings: strict),

        .executableTarget(
            name: "engine-bench", dependencies: ["CProcessor", "Processor"],
            path: "Sources/Hypervisor/engine-bench", swiftSettings: language),
        .executableTarget(
            name: "ioreq-bench", dependencies: ["DomainConfig", "Host", "Ioreq", "PCBoard"],
            path: "Sources/Hypervisor/ioreq-bench", swiftSettings: language),

        // Device model.
        .target(
            name: "PCI", dependencies: ["Machine", "Registers"], path: "Sources/DeviceModel/PCI", swiftSettings: strict),
        .target(
            name: "Images", dependencies: ["CAIO", "CCompression", "Host"], path: "Sources/DeviceModel/Images",
            swiftSettings: strict),
        .target(
            name: "Storage", dependencies: ["Host", "Images", "Machine"],
            path: "Sources/DeviceModel/Storage", swiftSettings: strict),
        .target(
            name: "VNC", dependencies: ["CVNC", "Host"], path: "Sources/DeviceModel/VNC", swiftSettings: strict),
        .target(
            name: "Display", dependencies: ["Machine", "VNC"],
            path: "Sources/DeviceModel/Display", swiftSettings: strict),
        .target(
            name: "Input", dependencies: ["Machine", "Registers"], path: "Sources/DeviceModel/Input",
            swiftSettings: strict),
        .target(
            name: "Firmware", dependencies: ["Machine"], path: "Sources/DeviceModel/Firmware",
            swiftSettings: strict),
        .target(
            name: "NetworkCards", dependencies: ["Ethernet", "Machine", "Registers"],
            path: "Sources/DeviceModel/NetworkCards", swiftSettings: strict),
        .target(
            name: "PCBoard",
            dependencies: [
                "Display", "DomainConfig", "Ethernet", "Firmware", "Host", "Images", "Input", "Ioreq", "Machine",
                "NetworkCards", "PCI", "Registers", "Storage", "VNC",
            ],
            path: "Sources/DeviceModel/PCBoard", swiftSettings: strict),
        .executableTarget(
            name: "device-model", dependencies: ["DomainProcess", "Host", "PCBoard"],
            path: "Sources/DeviceModel/device-model", swiftSettings: strict),

        // Networks: frames, and what is on the host's side of them.
        .systemLibrary(
            name: "CSlirp", path: "Sources/Network/CSlirp", providers: [.apt(["libslirp-dev"])]),
        .target(
            name: "Ethernet", dependencies: ["Host"], path: "Sources/Network/Ethernet", swiftSettings: strict),
        .target(
            name: "UserNetwork", dependencies: ["CSlirp", "Ethernet", "Host"], path: "Sources/Network/UserNetwork",
            swiftSettings: strict),
        .executableTarget(
            name: "network", dependencies: ["DomainProcess", "Host", "UserNetwork"], path: "Sources/Network/network",
            swiftSettings: strict),

        // Back ends.
        .target(name: "XenStore", path: "Sources/Backends/XenStore", swiftSettings: strict),
        .executableTarget(
            name: "xenstored", dependencies: ["Host", "XenStore"], path: "Sources/Backends/xenstored",
            swiftSettings: strict),

        .target(
            name: "Rings", dependencies: ["CXen", "Host"], path: "Sources/Backends/Rings", swiftSettings: strict),
        .target(
            name: "XenStoreClient", dependencies: ["Host", "XenStore"], path: "Sources/Backends/XenStoreClient",
            swiftSettings: strict),
        .target(
            name: "BlockBackend", dependencies: ["CXen", "Images", "Rings", "XenStore", "XenStoreClient"],
            path: "Sources/Backends/BlockBackend", swiftSettings: strict),
        .target(
            name: "NetBackend", dependencies: ["CXen", "Ethernet", "Host", "Rings", "XenStore", "XenStoreClient"],
            path: "Sources/Backends/NetBackend", swiftSettings: strict),
        .target(
            name: "ConsoleBackend", dependencies: ["CXen", "Host", "Rings"], path: "Sources/Backends/ConsoleBackend",
            swiftSettings: strict),
        .target(
            name: "DisplayBackend", dependencies: ["CXen", "Rings", "VNC", "XenStoreClient"],
            path: "Sources/Backends/DisplayBackend", swiftSettings: strict),

        .target(
            name: "DomainBackend",
            dependencies: [
                "BlockBackend", "ConsoleBackend", "DisplayBackend", "DomainConfig", "DomainProcess", "Ethernet", "Host",
                "Images", "Ioreq", "NetBackend", "Rings", "VNC", "XenStore", "XenStoreClient",
            ],
            path: "Sources/Backends/DomainBackend", swiftSettings: strict),
        .executableTarget(
            name: "backend", dependencies: ["DomainBackend", "DomainProcess", "Host"], path: "Sources/Backends/backend",
            swiftSettings: strict),

        // Toolstack.
        .target(name: "DomainConfig", path: "Sources/Toolstack/DomainConfig", swiftSettings: strict),
        .target(
            name: "Toolstack", dependencies: ["DomainConfig", "DomainProcess", "Host", "Images", "XenStoreClient"],
            path: "Sources/Toolstack/Toolstack",
            swiftSettings: strict),
        .executableTarget(
            name: "xl", dependencies: ["Host", "Toolstack"], path: "Sources/Toolstack/xl",
            swiftSettings: strict),

        // Tests: one target a family, so that each can be built alone.
        .target(
            name: "DeviceContract", dependencies: ["Machine", "TestSupport"], path: "Tests/DeviceContract",
            swiftSettings: language),
        .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: language),
        .testTarget(
            name: "MachineTests", dependencies: ["DeviceContract", "Machine", "Registers"], swiftSettings: language),
        // A program that the tests of `Confinement` start.
        .executableTarget(name: "confined", dependencies: ["Host"], path: "Tests/Confined", swiftSettings: language),
        .testTarget(name: "HostTests", dependencies: ["Host", "confined"], swiftSettings: language),
        .testTarget(name: "IoreqTests", dependencies: ["Host", "Ioreq"], swiftSettings: language),
        .testTarget(
            name: "ChipsTests", dependencies: ["Chips", "DeviceContract", "Machine", "Registers"],
            swiftSettings: language),
        // The host CPU as a reference for the processor's tests, and a second decoder.
        .target(name: "CNative", path: "Tests/CNative", linkerSettings: [.linkedLibrary("z")]),
        .systemLibrary(name: "CZydis", path: "Tests/CZydis", providers: [.apt(["libzydis-dev"])]),
        .testTarget(
            name: "ProcessorTests",
            dependencies: ["CNative", "CProcessor", "CZydis", "Host", "Processor", "TestSupport"],
            swiftSettings: language),
        .testTarget(
            name: "KernelTests",
            dependencies: ["CXen", "Chips", "DomainConfig", "Host", "Ioreq", "Kernel", "Machine", "Processor"],
            swiftSettings: language),
        .testTarget(
            name: "DeviceModelTests",
            dependencies: [
                "DeviceContract", "Display", "DomainConfig", "Ethernet", "Firmware", "Host", "Images", "Input", "Ioreq",
                "Machine", "NetworkCards", "PCBoard", "PCI", "Registers", "Storage", "TestSupport", "VNC",
                "device-model",
            ], swiftSettings: language),
        .testTarget(name: "ImagesTests", dependencies: ["Host", "Images", "TestSupport"], swiftSettings: language),
        .testTarget(name: "XenStoreTests", dependencies: ["XenStore"], swiftSettings: language),
        .testTarget(
            name: "BackendsTests",
            dependencies: [
                "BlockBackend", "ConsoleBackend", "DeviceContract", "DisplayBackend", "Ethernet", "Host", "Images",
                "NetBackend", "Rings", "TestSupport", "UserNetwork", "VNC", "XenStore", "XenStoreClient",
            ],
            swiftSettings: language),
        .testTarget(name: "DomainBuilderTests", dependencies: ["DomainBuilder"], swiftSettings: language),
        .testTarget(name: "DomainTests", swiftSettings: language),
        .testTarget(
            name: "ToolstackTests",
            dependencies: ["DomainConfig", "Host", "TestSupport", "Toolstack", "XenStore", "XenStoreClient"],
            swiftSettings: language),
    ]
)

/// APUS_TEST_TARGET=ProcessorTests: only this test target and what it needs, for `make soak`, which builds optimised tests.
if let wanted = Context.environment["APUS_TEST_TARGET"] {
    var kept: Set<String> = [wanted]
    var grows = true
    while grows {
        let needed = package.targets.filter { kept.contains($0.name) }.flatMap(\.dependencies).compactMap {
            if case .byNameItem(let name, _) = $0 { return name }
            return nil
        }
        let before = kept.count
        kept.formUnion(needed)
        grows = kept.count > before
    }
    package.targets.removeAll { !kept.contains($0.name) }
    package.products = []
}
