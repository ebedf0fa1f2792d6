// Arithmetic on 32- and 64-bit operands with the host's flags.
// Source: Intel SDM volume 2; the functions are those of alu.h.
// Modelled: as in Operand.swift, which has the smaller operands.
// One function for each instruction and width: C macros made them, so Swift cannot name them generically.

internal import CProcessor

extension UInt32: Operand {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_add32(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub32(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_and32(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_or32(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_xor32(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_adc32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sbb32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func cmp(_ a: Self, _ b: Self) -> UInt32 { apus_sub32(a, b).flags }
    @inline(__always) static func test(_ a: Self, _ b: Self) -> UInt32 { apus_and32(a, b).flags }
    @inline(__always) static func inc(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_inc32(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func dec(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_dec32(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func neg(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub32(0, a)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rol32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_ror32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcl32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcr32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shl32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shr32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_sar32(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func exchange(_ host: UnsafeMutableRawPointer, _ old: inout Self, _ new: Self) -> Bool {
        apus_cas32(host, &old, new)
    }
}

extension UInt32: WideOperand {
    @inline(__always) static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shld32(a, b, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shrd32(a, b, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func bsf(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_bsf32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func bsr(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_bsr32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func tzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_tzcnt32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func lzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_lzcnt32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func popcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_popcnt32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func imul(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_imul32(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func mulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_mulwide32(low, b)
        (low, f) = (r.low, r.flags)
        return r.high
    }
    @inline(__always) static func imulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_imulwide32(low, b)
        (low, f) = (r.low, r.flags)
        return r.high
    }
}

extension UInt64: Operand {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_add64(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub64(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_and64(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_or64(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_xor64(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_adc64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sbb64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func cmp(_ a: Self, _ b: Self) -> UInt32 { apus_sub64(a, b).flags }
    @inline(__always) static func test(_ a: Self, _ b: Self) -> UInt32 { apus_and64(a, b).flags }
    @inline(__always) static func inc(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_inc64(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func dec(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_dec64(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func neg(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub64(0, a)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rol64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_ror64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcl64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcr64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shl64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shr64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_sar64(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func exchange(_ host: UnsafeMutableRawPointer, _ old: inout Self, _ new: Self) -> Bool {
        apus_cas64(host, &old, new)
    }
}

extension UInt64: WideOperand {
    @inline(__always) static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shld64(a, b, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shrd64(a, b, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func bsf(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_bsf64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func bsr(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_bsr64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func tzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_tzcnt64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func lzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_lzcnt64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func popcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_popcnt64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func imul(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_imul64(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func mulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_mulwide64(low, b)
        (low, f) = (r.low, r.flags)
        return r.high
    }
    @inline(__always) static func imulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_imulwide64(low, b)
        (low, f) = (r.low, r.flags)
        return r.high
    }
}
