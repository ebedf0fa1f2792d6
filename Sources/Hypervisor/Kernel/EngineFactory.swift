// Which engine runs a domain's vCPUs.
// Source: docs/ARCHITECTURE.md, "Engines". Modelled: the software engine. Not modelled: KVM (a clear error).

internal import DomainConfig
public import Processor

/// Makes the engine of one vCPU.
public typealias EngineMaker = (
    _ index: Int, _ map: PhysicalMap, _ bus: any GuestBus, _ attention: UnsafeMutablePointer<UInt32>
) -> any VCPUEngine

enum EngineFactory {
    /// The engine for `config`; `APUS_ENGINE` overrides the config's key.
    static func maker(_ wanted: DomainConfig.Engine, override: String?) throws(SetupFailure) -> EngineMaker {
        var engine = wanted
        if let override {
            guard let named = DomainConfig.Engine(rawValue: override) else {
                throw SetupFailure("APUS_ENGINE is \"\(override)\", which is neither automatic, software nor kvm")
            }
            engine = named
        }
        switch engine {
        case .automatic, .software:
            return { unsafe SoftwareCPU(index: $0, map: $1, bus: $2, attention: $3) }
        case .kvm: throw SetupFailure("the kvm engine is not available in this version; use engine = \"software\"")
        }
    }
}
