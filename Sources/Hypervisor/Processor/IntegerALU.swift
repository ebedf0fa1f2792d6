// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP and TEST: one handler for each operation, form and size.
// Source: Intel SDM volume 2.
// Modelled: all forms; LOCK goes to `lockedArithmetic` in IntegerForms.swift.
// A handler must be a closure that captures nothing, hence a literal for each.

internal import CProcessor

/// Where the operands of a two-operand instruction are; the destination comes first.
enum OperandForm { case registers, load, store, immediate, storeImmediate }

/// One of four handlers by operand size.
@inline(__always) func sized(
    _ size: UInt8, _ byte: apus_handler, _ word: apus_handler, _ long: apus_handler, _ quad: apus_handler
) -> apus_handler {
    switch size {
    case 1: return byte
    case 2: return word
    case 4: return long
    default: return quad
    }
}

private func addHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, Add.self, UInt8.self) },
            { binaryRR($0, $1, Add.self, UInt16.self) },
            { binaryRR($0, $1, Add.self, UInt32.self) },
            { binaryRR($0, $1, Add.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, Add.self, UInt8.self) },
            { binaryRM($0, $1, Add.self, UInt16.self) },
            { binaryRM($0, $1, Add.self, UInt32.self) },
            { binaryRM($0, $1, Add.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, Add.self, UInt8.self) },
            { binaryMR($0, $1, Add.self, UInt16.self) },
            { binaryMR($0, $1, Add.self, UInt32.self) },
            { binaryMR($0, $1, Add.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, Add.self, UInt8.self) },
            { binaryRI($0, $1, Add.self, UInt16.self) },
            { binaryRI($0, $1, Add.self, UInt32.self) },
            { binaryRI($0, $1, Add.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, Add.self, UInt8.self) },
            { binaryMI($0, $1, Add.self, UInt16.self) },
            { binaryMI($0, $1, Add.self, UInt32.self) },
            { binaryMI($0, $1, Add.self, UInt64.self) })
    }
}

private func subHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, Sub.self, UInt8.self) },
            { binaryRR($0, $1, Sub.self, UInt16.self) },
            { binaryRR($0, $1, Sub.self, UInt32.self) },
            { binaryRR($0, $1, Sub.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, Sub.self, UInt8.self) },
            { binaryRM($0, $1, Sub.self, UInt16.self) },
            { binaryRM($0, $1, Sub.self, UInt32.self) },
            { binaryRM($0, $1, Sub.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, Sub.self, UInt8.self) },
            { binaryMR($0, $1, Sub.self, UInt16.self) },
            { binaryMR($0, $1, Sub.self, UInt32.self) },
            { binaryMR($0, $1, Sub.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, Sub.self, UInt8.self) },
            { binaryRI($0, $1, Sub.self, UInt16.self) },
            { binaryRI($0, $1, Sub.self, UInt32.self) },
            { binaryRI($0, $1, Sub.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, Sub.self, UInt8.self) },
            { binaryMI($0, $1, Sub.self, UInt16.self) },
            { binaryMI($0, $1, Sub.self, UInt32.self) },
            { binaryMI($0, $1, Sub.self, UInt64.self) })
    }
}

private func andHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, And.self, UInt8.self) },
            { binaryRR($0, $1, And.self, UInt16.self) },
            { binaryRR($0, $1, And.self, UInt32.self) },
            { binaryRR($0, $1, And.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, And.self, UInt8.self) },
            { binaryRM($0, $1, And.self, UInt16.self) },
            { binaryRM($0, $1, And.self, UInt32.self) },
            { binaryRM($0, $1, And.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, And.self, UInt8.self) },
            { binaryMR($0, $1, And.self, UInt16.self) },
            { binaryMR($0, $1, And.self, UInt32.self) },
            { binaryMR($0, $1, And.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, And.self, UInt8.self) },
            { binaryRI($0, $1, And.self, UInt16.self) },
            { binaryRI($0, $1, And.self, UInt32.self) },
            { binaryRI($0, $1, And.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, And.self, UInt8.self) },
            { binaryMI($0, $1, And.self, UInt16.self) },
            { binaryMI($0, $1, And.self, UInt32.self) },
            { binaryMI($0, $1, And.self, UInt64.self) })
    }
}

private func orHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, Or.self, UInt8.self) },
            { binaryRR($0, $1, Or.self, UInt16.self) },
            { binaryRR($0, $1, Or.self, UInt32.self) },
            { binaryRR($0, $1, Or.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, Or.self, UInt8.self) },
            { binaryRM($0, $1, Or.self, UInt16.self) },
            { binaryRM($0, $1, Or.self, UInt32.self) },
            { binaryRM($0, $1, Or.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, Or.self, UInt8.self) },
            { binaryMR($0, $1, Or.self, UInt16.self) },
            { binaryMR($0, $1, Or.self, UInt32.self) },
            { binaryMR($0, $1, Or.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, Or.self, UInt8.self) },
            { binaryRI($0, $1, Or.self, UInt16.self) },
            { binaryRI($0, $1, Or.self, UInt32.self) },
            { binaryRI($0, $1, Or.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, Or.self, UInt8.self) },
            { binaryMI($0, $1, Or.self, UInt16.self) },
            { binaryMI($0, $1, Or.self, UInt32.self) },
            { binaryMI($0, $1, Or.self, UInt64.self) })
    }
}

private func xorHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, Xor.self, UInt8.self) },
            { binaryRR($0, $1, Xor.self, UInt16.self) },
            { binaryRR($0, $1, Xor.self, UInt32.self) },
            { binaryRR($0, $1, Xor.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, Xor.self, UInt8.self) },
            { binaryRM($0, $1, Xor.self, UInt16.self) },
            { binaryRM($0, $1, Xor.self, UInt32.self) },
            { binaryRM($0, $1, Xor.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, Xor.self, UInt8.self) },
            { binaryMR($0, $1, Xor.self, UInt16.self) },
            { binaryMR($0, $1, Xor.self, UInt32.self) },
            { binaryMR($0, $1, Xor.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, Xor.self, UInt8.self) },
            { binaryRI($0, $1, Xor.self, UInt16.self) },
            { binaryRI($0, $1, Xor.self, UInt32.self) },
            { binaryRI($0, $1, Xor.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, Xor.self, UInt8.self) },
            { binaryMI($0, $1, Xor.self, UInt16.self) },
            { binaryMI($0, $1, Xor.self, UInt32.self) },
            { binaryMI($0, $1, Xor.self, UInt64.self) })
    }
}

private func adcHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, Adc.self, UInt8.self) },
            { binaryRR($0, $1, Adc.self, UInt16.self) },
            { binaryRR($0, $1, Adc.self, UInt32.self) },
            { binaryRR($0, $1, Adc.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, Adc.self, UInt8.self) },
            { binaryRM($0, $1, Adc.self, UInt16.self) },
            { binaryRM($0, $1, Adc.self, UInt32.self) },
            { binaryRM($0, $1, Adc.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, Adc.self, UInt8.self) },
            { binaryMR($0, $1, Adc.self, UInt16.self) },
            { binaryMR($0, $1, Adc.self, UInt32.self) },
            { binaryMR($0, $1, Adc.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, Adc.self, UInt8.self) },
            { binaryRI($0, $1, Adc.self, UInt16.self) },
            { binaryRI($0, $1, Adc.self, UInt32.self) },
            { binaryRI($0, $1, Adc.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, Adc.self, UInt8.self) },
            { binaryMI($0, $1, Adc.self, UInt16.self) },
            { binaryMI($0, $1, Adc.self, UInt32.self) },
            { binaryMI($0, $1, Adc.self, UInt64.self) })
    }
}

private func sbbHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { binaryRR($0, $1, Sbb.self, UInt8.self) },
            { binaryRR($0, $1, Sbb.self, UInt16.self) },
            { binaryRR($0, $1, Sbb.self, UInt32.self) },
            { binaryRR($0, $1, Sbb.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { binaryRM($0, $1, Sbb.self, UInt8.self) },
            { binaryRM($0, $1, Sbb.self, UInt16.self) },
            { binaryRM($0, $1, Sbb.self, UInt32.self) },
            { binaryRM($0, $1, Sbb.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { binaryMR($0, $1, Sbb.self, UInt8.self) },
            { binaryMR($0, $1, Sbb.self, UInt16.self) },
            { binaryMR($0, $1, Sbb.self, UInt32.self) },
            { binaryMR($0, $1, Sbb.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { binaryRI($0, $1, Sbb.self, UInt8.self) },
            { binaryRI($0, $1, Sbb.self, UInt16.self) },
            { binaryRI($0, $1, Sbb.self, UInt32.self) },
            { binaryRI($0, $1, Sbb.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { binaryMI($0, $1, Sbb.self, UInt8.self) },
            { binaryMI($0, $1, Sbb.self, UInt16.self) },
            { binaryMI($0, $1, Sbb.self, UInt32.self) },
            { binaryMI($0, $1, Sbb.self, UInt64.self) })
    }
}

private func cmpHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { compareRR($0, $1, Cmp.self, UInt8.self) },
            { compareRR($0, $1, Cmp.self, UInt16.self) },
            { compareRR($0, $1, Cmp.self, UInt32.self) },
            { compareRR($0, $1, Cmp.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { compareRM($0, $1, Cmp.self, UInt8.self) },
            { compareRM($0, $1, Cmp.self, UInt16.self) },
            { compareRM($0, $1, Cmp.self, UInt32.self) },
            { compareRM($0, $1, Cmp.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { compareMR($0, $1, Cmp.self, UInt8.self) },
            { compareMR($0, $1, Cmp.self, UInt16.self) },
            { compareMR($0, $1, Cmp.self, UInt32.self) },
            { compareMR($0, $1, Cmp.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { compareRI($0, $1, Cmp.self, UInt8.self) },
            { compareRI($0, $1, Cmp.self, UInt16.self) },
            { compareRI($0, $1, Cmp.self, UInt32.self) },
            { compareRI($0, $1, Cmp.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { compareMI($0, $1, Cmp.self, UInt8.self) },
            { compareMI($0, $1, Cmp.self, UInt16.self) },
            { compareMI($0, $1, Cmp.self, UInt32.self) },
            { compareMI($0, $1, Cmp.self, UInt64.self) })
    }
}

func testHandler(_ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch form {
    case .registers:
        return sized(
            size,
            { compareRR($0, $1, Test.self, UInt8.self) },
            { compareRR($0, $1, Test.self, UInt16.self) },
            { compareRR($0, $1, Test.self, UInt32.self) },
            { compareRR($0, $1, Test.self, UInt64.self) })
    case .load:
        return sized(
            size,
            { compareRM($0, $1, Test.self, UInt8.self) },
            { compareRM($0, $1, Test.self, UInt16.self) },
            { compareRM($0, $1, Test.self, UInt32.self) },
            { compareRM($0, $1, Test.self, UInt64.self) })
    case .store:
        return sized(
            size,
            { compareMR($0, $1, Test.self, UInt8.self) },
            { compareMR($0, $1, Test.self, UInt16.self) },
            { compareMR($0, $1, Test.self, UInt32.self) },
            { compareMR($0, $1, Test.self, UInt64.self) })
    case .immediate:
        return sized(
            size,
            { compareRI($0, $1, Test.self, UInt8.self) },
            { compareRI($0, $1, Test.self, UInt16.self) },
            { compareRI($0, $1, Test.self, UInt32.self) },
            { compareRI($0, $1, Test.self, UInt64.self) })
    case .storeImmediate:
        return sized(
            size,
            { compareMI($0, $1, Test.self, UInt8.self) },
            { compareMI($0, $1, Test.self, UInt16.self) },
            { compareMI($0, $1, Test.self, UInt32.self) },
            { compareMI($0, $1, Test.self, UInt64.self) })
    }
}

/// The handler of operation `which`, as opcode bits 5-3 and group 1 number them.
func arithmeticHandler(_ which: UInt8, _ form: OperandForm, _ size: UInt8) -> apus_handler {
    switch which & 7 {
    case 0: return addHandler(form, size)
    case 1: return orHandler(form, size)
    case 2: return adcHandler(form, size)
    case 3: return sbbHandler(form, size)
    case 4: return andHandler(form, size)
    case 5: return subHandler(form, size)
    case 6: return xorHandler(form, size)
    default: return cmpHandler(form, size)
    }
}
