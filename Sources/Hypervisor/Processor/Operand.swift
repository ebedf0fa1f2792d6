// Arithmetic on operands of 8 to 64 bits with the host's flags, for generic handlers.
// Source: Intel SDM volume 2; the functions are those of alu.h.
// Modelled: flags as the host leaves them, undefined ones included.
// `f` is `arith_flags`: read by instructions that keep or use some flags, replaced by all.

internal import CProcessor

/// A general register's or memory operand's type.
protocol Operand: FixedWidthInteger & UnsignedInteger {
    static func add(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func sub(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func and(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func or(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func xor(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func adc(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func sbb(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func cmp(_ a: Self, _ b: Self) -> UInt32
    static func test(_ a: Self, _ b: Self) -> UInt32
    static func inc(_ a: Self, _ f: inout UInt32) -> Self
    static func dec(_ a: Self, _ f: inout UInt32) -> Self
    static func neg(_ a: Self, _ f: inout UInt32) -> Self
    static func rol(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func ror(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func rcl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func rcr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func shl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func shr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func sar(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    /// CMPXCHG with LOCK on host memory.
    static func exchange(_ host: UnsafeMutableRawPointer, _ old: inout Self, _ new: Self) -> Bool
}

/// An operand of 16 to 64 bits.
protocol WideOperand: Operand {
    static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self
    static func bsf(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func bsr(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func tzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func lzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func popcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func imul(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self
    static func mulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self
    static func imulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self
}

extension UInt8: Operand {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_add8(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub8(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_and8(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_or8(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_xor8(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_adc8(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sbb8(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func cmp(_ a: Self, _ b: Self) -> UInt32 { apus_sub8(a, b).flags }
    @inline(__always) static func test(_ a: Self, _ b: Self) -> UInt32 { apus_and8(a, b).flags }
    @inline(__always) static func inc(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_inc8(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func dec(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_dec8(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func neg(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub8(0, a)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rol8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_ror8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcl8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcr8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shl8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shr8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_sar8(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func exchange(_ host: UnsafeMutableRawPointer, _ old: inout Self, _ new: Self) -> Bool {
        apus_cas8(host, &old, new)
    }
}

extension UInt16: Operand {
    @inline(__always) static func add(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_add16(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sub(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub16(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func and(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_and16(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func or(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_or16(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func xor(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_xor16(a, b)
        f = r.flags
        return r.value
    }
    @inline(__always) static func adc(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_adc16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sbb(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_sbb16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func cmp(_ a: Self, _ b: Self) -> UInt32 { apus_sub16(a, b).flags }
    @inline(__always) static func test(_ a: Self, _ b: Self) -> UInt32 { apus_and16(a, b).flags }
    @inline(__always) static func inc(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_inc16(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func dec(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_dec16(a, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func neg(_ a: Self, _ f: inout UInt32) -> Self {
        let r = apus_sub16(0, a)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rol(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rol16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func ror(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_ror16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcl16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func rcr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_rcr16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shl(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shl16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shr(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shr16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func sar(_ a: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_sar16(a, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func exchange(_ host: UnsafeMutableRawPointer, _ old: inout Self, _ new: Self) -> Bool {
        apus_cas16(host, &old, new)
    }
}

extension UInt16: WideOperand {
    @inline(__always) static func shld(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shld16(a, b, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func shrd(_ a: Self, _ b: Self, _ count: UInt8, _ f: inout UInt32) -> Self {
        let r = apus_shrd16(a, b, count, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func bsf(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_bsf16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func bsr(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_bsr16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func tzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_tzcnt16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func lzcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_lzcnt16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func popcnt(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_popcnt16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func imul(_ a: Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_imul16(a, b, f)
        f = r.flags
        return r.value
    }
    @inline(__always) static func mulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_mulwide16(low, b)
        (low, f) = (r.low, r.flags)
        return r.high
    }
    @inline(__always) static func imulwide(_ low: inout Self, _ b: Self, _ f: inout UInt32) -> Self {
        let r = apus_imulwide16(low, b)
        (low, f) = (r.low, r.flags)
        return r.high
    }
}

/// An instruction with two sources and one result.
protocol Binary {
    static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T
}

enum Add: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.add(a, b, &f) }
}
enum Sub: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.sub(a, b, &f) }
}
enum And: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.and(a, b, &f) }
}
enum Or: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.or(a, b, &f) }
}
enum Xor: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.xor(a, b, &f) }
}
enum Adc: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.adc(a, b, &f) }
}
enum Sbb: Binary {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T, _ f: inout UInt32) -> T { T.sbb(a, b, &f) }
}

/// An instruction with two sources and only flags for a result.
protocol Comparison {
    static func apply<T: Operand>(_ a: T, _ b: T) -> UInt32
}

enum Cmp: Comparison {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T) -> UInt32 { T.cmp(a, b) }
}
enum Test: Comparison {
    @inline(__always) static func apply<T: Operand>(_ a: T, _ b: T) -> UInt32 { T.test(a, b) }
}
