// DSDT of the board: what a guest cannot find by probing.
// Source: ACPI specification 3.0b; the board as Sources/DeviceModel/PCBoard/PCBoard.swift wires it.
// Compiled by `make firmware` into Sources/DeviceModel/Firmware/DSDT+Data.swift.
// Quirks: PMEM is patched before the guest sees it: the first address above RAM below 4 GiB.

DefinitionBlock ("dsdt.aml", "DSDT", 2, "Xen", "HVM", 1)
{
    Name (PMEM, 0x80000001)

    // 0: 8259, 1: IOAPIC. The operating system says which.
    Name (PICD, Zero)
    Method (_PIC, 1) { PICD = Arg0 }

    // Soft off is sleep type 0 of PIIX4 (PMCNTRL, bits 12:10).
    Name (_S5, Package (4) { Zero, Zero, Zero, Zero })

    Scope (_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A03"))
            Name (_UID, Zero)
            Name (_BBN, Zero)

            Name (CRES, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0x0000, 0x0000, 0x00FF, 0x0000, 0x0100)
                IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0000, 0x0CF7, 0x0000, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0x0000, 0x0D00, 0xFFFF, 0x0000, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0x00000000, 0x000A0000, 0x000BFFFF, 0x00000000, 0x00020000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0x80000000, 0xFEBFFFFF, 0x00000000, 0x7EC00000, , , HOLE)
            })
            Method (_CRS, 0, Serialized)
            {
                CreateDWordField (CRES, \_SB.PCI0.HOLE._MIN, PMIN)
                CreateDWordField (CRES, \_SB.PCI0.HOLE._MAX, PMAX)
                CreateDWordField (CRES, \_SB.PCI0.HOLE._LEN, PLEN)
                PMIN = PMEM
                PLEN = PMAX - PMIN + One
                Return (CRES)
            }

            Method (_PRT)
            {
                If (PICD) { Return (APRT) }
                Return (LPRT)
            }

            // 8259: INTx of device d is link (d - 1 + pin) mod 4.
            Name (LPRT, Package ()
            {
                Package (4) { 0xFFFF, 0, LNKD, Zero }, Package (4) { 0xFFFF, 1, LNKA, Zero },
                Package (4) { 0xFFFF, 2, LNKB, Zero }, Package (4) { 0xFFFF, 3, LNKC, Zero },
                Package (4) { 0x1FFFF, 0, LNKA, Zero }, Package (4) { 0x1FFFF, 1, LNKB, Zero },
                Package (4) { 0x1FFFF, 2, LNKC, Zero }, Package (4) { 0x1FFFF, 3, LNKD, Zero },
                Package (4) { 0x2FFFF, 0, LNKB, Zero }, Package (4) { 0x2FFFF, 1, LNKC, Zero },
                Package (4) { 0x2FFFF, 2, LNKD, Zero }, Package (4) { 0x2FFFF, 3, LNKA, Zero },
                Package (4) { 0x3FFFF, 0, LNKC, Zero }, Package (4) { 0x3FFFF, 1, LNKD, Zero },
                Package (4) { 0x3FFFF, 2, LNKA, Zero }, Package (4) { 0x3FFFF, 3, LNKB, Zero },
                Package (4) { 0x4FFFF, 0, LNKD, Zero }, Package (4) { 0x4FFFF, 1, LNKA, Zero },
                Package (4) { 0x4FFFF, 2, LNKB, Zero }, Package (4) { 0x4FFFF, 3, LNKC, Zero },
                Package (4) { 0x5FFFF, 0, LNKA, Zero }, Package (4) { 0x5FFFF, 1, LNKB, Zero },
                Package (4) { 0x5FFFF, 2, LNKC, Zero }, Package (4) { 0x5FFFF, 3, LNKD, Zero },
                Package (4) { 0x6FFFF, 0, LNKB, Zero }, Package (4) { 0x6FFFF, 1, LNKC, Zero },
                Package (4) { 0x6FFFF, 2, LNKD, Zero }, Package (4) { 0x6FFFF, 3, LNKA, Zero },
                Package (4) { 0x7FFFF, 0, LNKC, Zero }, Package (4) { 0x7FFFF, 1, LNKD, Zero },
                Package (4) { 0x7FFFF, 2, LNKA, Zero }, Package (4) { 0x7FFFF, 3, LNKB, Zero },
                Package (4) { 0x8FFFF, 0, LNKD, Zero }, Package (4) { 0x8FFFF, 1, LNKA, Zero },
                Package (4) { 0x8FFFF, 2, LNKB, Zero }, Package (4) { 0x8FFFF, 3, LNKC, Zero },
                Package (4) { 0x9FFFF, 0, LNKA, Zero }, Package (4) { 0x9FFFF, 1, LNKB, Zero },
                Package (4) { 0x9FFFF, 2, LNKC, Zero }, Package (4) { 0x9FFFF, 3, LNKD, Zero },
                Package (4) { 0xAFFFF, 0, LNKB, Zero }, Package (4) { 0xAFFFF, 1, LNKC, Zero },
                Package (4) { 0xAFFFF, 2, LNKD, Zero }, Package (4) { 0xAFFFF, 3, LNKA, Zero },
                Package (4) { 0xBFFFF, 0, LNKC, Zero }, Package (4) { 0xBFFFF, 1, LNKD, Zero },
                Package (4) { 0xBFFFF, 2, LNKA, Zero }, Package (4) { 0xBFFFF, 3, LNKB, Zero },
                Package (4) { 0xCFFFF, 0, LNKD, Zero }, Package (4) { 0xCFFFF, 1, LNKA, Zero },
                Package (4) { 0xCFFFF, 2, LNKB, Zero }, Package (4) { 0xCFFFF, 3, LNKC, Zero },
                Package (4) { 0xDFFFF, 0, LNKA, Zero }, Package (4) { 0xDFFFF, 1, LNKB, Zero },
                Package (4) { 0xDFFFF, 2, LNKC, Zero }, Package (4) { 0xDFFFF, 3, LNKD, Zero },
                Package (4) { 0xEFFFF, 0, LNKB, Zero }, Package (4) { 0xEFFFF, 1, LNKC, Zero },
                Package (4) { 0xEFFFF, 2, LNKD, Zero }, Package (4) { 0xEFFFF, 3, LNKA, Zero },
                Package (4) { 0xFFFFF, 0, LNKC, Zero }, Package (4) { 0xFFFFF, 1, LNKD, Zero },
                Package (4) { 0xFFFFF, 2, LNKA, Zero }, Package (4) { 0xFFFFF, 3, LNKB, Zero },
                Package (4) { 0x10FFFF, 0, LNKD, Zero }, Package (4) { 0x10FFFF, 1, LNKA, Zero },
                Package (4) { 0x10FFFF, 2, LNKB, Zero }, Package (4) { 0x10FFFF, 3, LNKC, Zero },
                Package (4) { 0x11FFFF, 0, LNKA, Zero }, Package (4) { 0x11FFFF, 1, LNKB, Zero },
                Package (4) { 0x11FFFF, 2, LNKC, Zero }, Package (4) { 0x11FFFF, 3, LNKD, Zero },
                Package (4) { 0x12FFFF, 0, LNKB, Zero }, Package (4) { 0x12FFFF, 1, LNKC, Zero },
                Package (4) { 0x12FFFF, 2, LNKD, Zero }, Package (4) { 0x12FFFF, 3, LNKA, Zero },
                Package (4) { 0x13FFFF, 0, LNKC, Zero }, Package (4) { 0x13FFFF, 1, LNKD, Zero },
                Package (4) { 0x13FFFF, 2, LNKA, Zero }, Package (4) { 0x13FFFF, 3, LNKB, Zero },
                Package (4) { 0x14FFFF, 0, LNKD, Zero }, Package (4) { 0x14FFFF, 1, LNKA, Zero },
                Package (4) { 0x14FFFF, 2, LNKB, Zero }, Package (4) { 0x14FFFF, 3, LNKC, Zero },
                Package (4) { 0x15FFFF, 0, LNKA, Zero }, Package (4) { 0x15FFFF, 1, LNKB, Zero },
                Package (4) { 0x15FFFF, 2, LNKC, Zero }, Package (4) { 0x15FFFF, 3, LNKD, Zero },
                Package (4) { 0x16FFFF, 0, LNKB, Zero }, Package (4) { 0x16FFFF, 1, LNKC, Zero },
                Package (4) { 0x16FFFF, 2, LNKD, Zero }, Package (4) { 0x16FFFF, 3, LNKA, Zero },
                Package (4) { 0x17FFFF, 0, LNKC, Zero }, Package (4) { 0x17FFFF, 1, LNKD, Zero },
                Package (4) { 0x17FFFF, 2, LNKA, Zero }, Package (4) { 0x17FFFF, 3, LNKB, Zero },
                Package (4) { 0x18FFFF, 0, LNKD, Zero }, Package (4) { 0x18FFFF, 1, LNKA, Zero },
                Package (4) { 0x18FFFF, 2, LNKB, Zero }, Package (4) { 0x18FFFF, 3, LNKC, Zero },
                Package (4) { 0x19FFFF, 0, LNKA, Zero }, Package (4) { 0x19FFFF, 1, LNKB, Zero },
                Package (4) { 0x19FFFF, 2, LNKC, Zero }, Package (4) { 0x19FFFF, 3, LNKD, Zero },
                Package (4) { 0x1AFFFF, 0, LNKB, Zero }, Package (4) { 0x1AFFFF, 1, LNKC, Zero },
                Package (4) { 0x1AFFFF, 2, LNKD, Zero }, Package (4) { 0x1AFFFF, 3, LNKA, Zero },
                Package (4) { 0x1BFFFF, 0, LNKC, Zero }, Package (4) { 0x1BFFFF, 1, LNKD, Zero },
                Package (4) { 0x1BFFFF, 2, LNKA, Zero }, Package (4) { 0x1BFFFF, 3, LNKB, Zero },
                Package (4) { 0x1CFFFF, 0, LNKD, Zero }, Package (4) { 0x1CFFFF, 1, LNKA, Zero },
                Package (4) { 0x1CFFFF, 2, LNKB, Zero }, Package (4) { 0x1CFFFF, 3, LNKC, Zero },
                Package (4) { 0x1DFFFF, 0, LNKA, Zero }, Package (4) { 0x1DFFFF, 1, LNKB, Zero },
                Package (4) { 0x1DFFFF, 2, LNKC, Zero }, Package (4) { 0x1DFFFF, 3, LNKD, Zero },
                Package (4) { 0x1EFFFF, 0, LNKB, Zero }, Package (4) { 0x1EFFFF, 1, LNKC, Zero },
                Package (4) { 0x1EFFFF, 2, LNKD, Zero }, Package (4) { 0x1EFFFF, 3, LNKA, Zero },
                Package (4) { 0x1FFFFF, 0, LNKC, Zero }, Package (4) { 0x1FFFFF, 1, LNKD, Zero },
                Package (4) { 0x1FFFFF, 2, LNKA, Zero }, Package (4) { 0x1FFFFF, 3, LNKB, Zero },
            })

            // IOAPIC: input 16 + (4 d + pin) mod 32.
            Name (APRT, Package ()
            {
                Package (4) { 0xFFFF, 0, Zero, 16 }, Package (4) { 0xFFFF, 1, Zero, 17 },
                Package (4) { 0xFFFF, 2, Zero, 18 }, Package (4) { 0xFFFF, 3, Zero, 19 },
                Package (4) { 0x1FFFF, 0, Zero, 20 }, Package (4) { 0x1FFFF, 1, Zero, 21 },
                Package (4) { 0x1FFFF, 2, Zero, 22 }, Package (4) { 0x1FFFF, 3, Zero, 23 },
                Package (4) { 0x2FFFF, 0, Zero, 24 }, Package (4) { 0x2FFFF, 1, Zero, 25 },
                Package (4) { 0x2FFFF, 2, Zero, 26 }, Package (4) { 0x2FFFF, 3, Zero, 27 },
                Package (4) { 0x3FFFF, 0, Zero, 28 }, Package (4) { 0x3FFFF, 1, Zero, 29 },
                Package (4) { 0x3FFFF, 2, Zero, 30 }, Package (4) { 0x3FFFF, 3, Zero, 31 },
                Package (4) { 0x4FFFF, 0, Zero, 32 }, Package (4) { 0x4FFFF, 1, Zero, 33 },
                Package (4) { 0x4FFFF, 2, Zero, 34 }, Package (4) { 0x4FFFF, 3, Zero, 35 },
                Package (4) { 0x5FFFF, 0, Zero, 36 }, Package (4) { 0x5FFFF, 1, Zero, 37 },
                Package (4) { 0x5FFFF, 2, Zero, 38 }, Package (4) { 0x5FFFF, 3, Zero, 39 },
                Package (4) { 0x6FFFF, 0, Zero, 40 }, Package (4) { 0x6FFFF, 1, Zero, 41 },
                Package (4) { 0x6FFFF, 2, Zero, 42 }, Package (4) { 0x6FFFF, 3, Zero, 43 },
                Package (4) { 0x7FFFF, 0, Zero, 44 }, Package (4) { 0x7FFFF, 1, Zero, 45 },
                Package (4) { 0x7FFFF, 2, Zero, 46 }, Package (4) { 0x7FFFF, 3, Zero, 47 },
                Package (4) { 0x8FFFF, 0, Zero, 16 }, Package (4) { 0x8FFFF, 1, Zero, 17 },
                Package (4) { 0x8FFFF, 2, Zero, 18 }, Package (4) { 0x8FFFF, 3, Zero, 19 },
                Package (4) { 0x9FFFF, 0, Zero, 20 }, Package (4) { 0x9FFFF, 1, Zero, 21 },
                Package (4) { 0x9FFFF, 2, Zero, 22 }, Package (4) { 0x9FFFF, 3, Zero, 23 },
                Package (4) { 0xAFFFF, 0, Zero, 24 }, Package (4) { 0xAFFFF, 1, Zero, 25 },
                Package (4) { 0xAFFFF, 2, Zero, 26 }, Package (4) { 0xAFFFF, 3, Zero, 27 },
                Package (4) { 0xBFFFF, 0, Zero, 28 }, Package (4) { 0xBFFFF, 1, Zero, 29 },
                Package (4) { 0xBFFFF, 2, Zero, 30 }, Package (4) { 0xBFFFF, 3, Zero, 31 },
                Package (4) { 0xCFFFF, 0, Zero, 32 }, Package (4) { 0xCFFFF, 1, Zero, 33 },
                Package (4) { 0xCFFFF, 2, Zero, 34 }, Package (4) { 0xCFFFF, 3, Zero, 35 },
                Package (4) { 0xDFFFF, 0, Zero, 36 }, Package (4) { 0xDFFFF, 1, Zero, 37 },
                Package (4) { 0xDFFFF, 2, Zero, 38 }, Package (4) { 0xDFFFF, 3, Zero, 39 },
                Package (4) { 0xEFFFF, 0, Zero, 40 }, Package (4) { 0xEFFFF, 1, Zero, 41 },
                Package (4) { 0xEFFFF, 2, Zero, 42 }, Package (4) { 0xEFFFF, 3, Zero, 43 },
                Package (4) { 0xFFFFF, 0, Zero, 44 }, Package (4) { 0xFFFFF, 1, Zero, 45 },
                Package (4) { 0xFFFFF, 2, Zero, 46 }, Package (4) { 0xFFFFF, 3, Zero, 47 },
                Package (4) { 0x10FFFF, 0, Zero, 16 }, Package (4) { 0x10FFFF, 1, Zero, 17 },
                Package (4) { 0x10FFFF, 2, Zero, 18 }, Package (4) { 0x10FFFF, 3, Zero, 19 },
                Package (4) { 0x11FFFF, 0, Zero, 20 }, Package (4) { 0x11FFFF, 1, Zero, 21 },
                Package (4) { 0x11FFFF, 2, Zero, 22 }, Package (4) { 0x11FFFF, 3, Zero, 23 },
                Package (4) { 0x12FFFF, 0, Zero, 24 }, Package (4) { 0x12FFFF, 1, Zero, 25 },
                Package (4) { 0x12FFFF, 2, Zero, 26 }, Package (4) { 0x12FFFF, 3, Zero, 27 },
                Package (4) { 0x13FFFF, 0, Zero, 28 }, Package (4) { 0x13FFFF, 1, Zero, 29 },
                Package (4) { 0x13FFFF, 2, Zero, 30 }, Package (4) { 0x13FFFF, 3, Zero, 31 },
                Package (4) { 0x14FFFF, 0, Zero, 32 }, Package (4) { 0x14FFFF, 1, Zero, 33 },
                Package (4) { 0x14FFFF, 2, Zero, 34 }, Package (4) { 0x14FFFF, 3, Zero, 35 },
                Package (4) { 0x15FFFF, 0, Zero, 36 }, Package (4) { 0x15FFFF, 1, Zero, 37 },
                Package (4) { 0x15FFFF, 2, Zero, 38 }, Package (4) { 0x15FFFF, 3, Zero, 39 },
                Package (4) { 0x16FFFF, 0, Zero, 40 }, Package (4) { 0x16FFFF, 1, Zero, 41 },
                Package (4) { 0x16FFFF, 2, Zero, 42 }, Package (4) { 0x16FFFF, 3, Zero, 43 },
                Package (4) { 0x17FFFF, 0, Zero, 44 }, Package (4) { 0x17FFFF, 1, Zero, 45 },
                Package (4) { 0x17FFFF, 2, Zero, 46 }, Package (4) { 0x17FFFF, 3, Zero, 47 },
                Package (4) { 0x18FFFF, 0, Zero, 16 }, Package (4) { 0x18FFFF, 1, Zero, 17 },
                Package (4) { 0x18FFFF, 2, Zero, 18 }, Package (4) { 0x18FFFF, 3, Zero, 19 },
                Package (4) { 0x19FFFF, 0, Zero, 20 }, Package (4) { 0x19FFFF, 1, Zero, 21 },
                Package (4) { 0x19FFFF, 2, Zero, 22 }, Package (4) { 0x19FFFF, 3, Zero, 23 },
                Package (4) { 0x1AFFFF, 0, Zero, 24 }, Package (4) { 0x1AFFFF, 1, Zero, 25 },
                Package (4) { 0x1AFFFF, 2, Zero, 26 }, Package (4) { 0x1AFFFF, 3, Zero, 27 },
                Package (4) { 0x1BFFFF, 0, Zero, 28 }, Package (4) { 0x1BFFFF, 1, Zero, 29 },
                Package (4) { 0x1BFFFF, 2, Zero, 30 }, Package (4) { 0x1BFFFF, 3, Zero, 31 },
                Package (4) { 0x1CFFFF, 0, Zero, 32 }, Package (4) { 0x1CFFFF, 1, Zero, 33 },
                Package (4) { 0x1CFFFF, 2, Zero, 34 }, Package (4) { 0x1CFFFF, 3, Zero, 35 },
                Package (4) { 0x1DFFFF, 0, Zero, 36 }, Package (4) { 0x1DFFFF, 1, Zero, 37 },
                Package (4) { 0x1DFFFF, 2, Zero, 38 }, Package (4) { 0x1DFFFF, 3, Zero, 39 },
                Package (4) { 0x1EFFFF, 0, Zero, 40 }, Package (4) { 0x1EFFFF, 1, Zero, 41 },
                Package (4) { 0x1EFFFF, 2, Zero, 42 }, Package (4) { 0x1EFFFF, 3, Zero, 43 },
                Package (4) { 0x1FFFFF, 0, Zero, 44 }, Package (4) { 0x1FFFFF, 1, Zero, 45 },
                Package (4) { 0x1FFFFF, 2, Zero, 46 }, Package (4) { 0x1FFFFF, 3, Zero, 47 },
            })

            Device (ISA)
            {
                Name (_ADR, 0x00010000)
                OperationRegion (PIRQ, PCI_Config, 0x60, 0x04)
                Field (PIRQ, ByteAcc, NoLock, Preserve)
                {
                    PRQA, 8, PRQB, 8, PRQC, 8, PRQD, 8
                }

                Device (PIC)
                {
                    Name (_HID, EisaId ("PNP0000"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0020, 0x0020, 0x01, 0x02)
                        IO (Decode16, 0x00A0, 0x00A0, 0x01, 0x02)
                        IRQNoFlags () { 2 }
                    })
                }
                Device (TIMR)
                {
                    Name (_HID, EisaId ("PNP0100"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0040, 0x0040, 0x01, 0x04)
                        IRQNoFlags () { 0 }
                    })
                }
                Device (DMAC)
                {
                    Name (_HID, EisaId ("PNP0200"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0000, 0x0000, 0x01, 0x10)
                        IO (Decode16, 0x0081, 0x0081, 0x01, 0x0F)
                        IO (Decode16, 0x00C0, 0x00C0, 0x01, 0x20)
                        DMA (Compatibility, NotBusMaster, Transfer8) { 4 }
                    })
                }
                Device (SPKR)
                {
                    Name (_HID, EisaId ("PNP0800"))
                    Name (_CRS, ResourceTemplate () { IO (Decode16, 0x0061, 0x0061, 0x01, 0x01) })
                }
                Device (FPU)
                {
                    Name (_HID, EisaId ("PNP0C04"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x00F0, 0x00F0, 0x01, 0x01)
                        IRQNoFlags () { 13 }
                    })
                }
                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0070, 0x0070, 0x01, 0x08)
                        IRQNoFlags () { 8 }
                    })
                }
                Device (KBD)
                {
                    Name (_HID, EisaId ("PNP0303"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0060, 0x0060, 0x01, 0x01)
                        IO (Decode16, 0x0064, 0x0064, 0x01, 0x01)
                        IRQNoFlags () { 1 }
                    })
                }
                Device (MOU)
                {
                    Name (_HID, EisaId ("PNP0F13"))
                    Name (_CRS, ResourceTemplate () { IRQNoFlags () { 12 } })
                }
                Device (FDC0)
                {
                    Name (_HID, EisaId ("PNP0700"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x03F2, 0x03F2, 0x00, 0x04)
                        IO (Decode16, 0x03F7, 0x03F7, 0x00, 0x01)
                        IRQNoFlags () { 6 }
                        DMA (Compatibility, NotBusMaster, Transfer8) { 2 }
                    })
                }
                Device (COM1)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, One)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x03F8, 0x03F8, 0x00, 0x08)
                        IRQNoFlags () { 4 }
                    })
                }
                Device (MBRS)
                {
                    Name (_HID, EisaId ("PNP0C02"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0010, 0x0010, 0x01, 0x10)
                        IO (Decode16, 0x0080, 0x0080, 0x01, 0x01)
                        IO (Decode16, 0x0092, 0x0092, 0x01, 0x01)
                        IO (Decode16, 0x00B2, 0x00B2, 0x01, 0x02)
                        IO (Decode16, 0x04D0, 0x04D0, 0x01, 0x02)
                        IO (Decode16, 0x0510, 0x0510, 0x01, 0x0C)
                        IO (Decode16, 0x0600, 0x0600, 0x01, 0x40)
                        IO (Decode16, 0x0700, 0x0700, 0x01, 0x10)
                        IO (Decode16, 0xAFE0, 0xAFE0, 0x01, 0x04)
                    })
                }
            }
        }

        Device (HPET)
        {
            Name (_HID, EisaId ("PNP0103"))
            Name (_UID, Zero)
            OperationRegion (HPTM, SystemMemory, 0xFED00000, 0x0400)
            Field (HPTM, DWordAcc, Lock, Preserve)
            {
                VEND, 32,
                PRD, 32
            }
            // Present if the counter's period is one that the specification allows.
            Method (_STA)
            {
                If (VEND == Zero || VEND == 0xFFFFFFFF) { Return (Zero) }
                If (PRD == Zero || PRD > 100000000) { Return (Zero) }
                Return (0x0F)
            }
            Name (_CRS, ResourceTemplate () { Memory32Fixed (ReadOnly, 0xFED00000, 0x00000400) })
        }

        // The interrupt links of PIIX3: bit 7 of a route register set means not connected.
        Method (LSTA, 1)
        {
            If (Arg0 & 0x80) { Return (0x09) }
            Return (0x0B)
        }
        Method (LCRS, 1, Serialized)
        {
            Name (BUFF, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) {} })
            CreateWordField (BUFF, One, MASK)
            MASK = Zero
            If ((Arg0 & 0x80) == Zero) { MASK = One << (Arg0 & 0x0F) }
            Return (BUFF)
        }
        Method (LSRS, 1, Serialized)
        {
            CreateWordField (Arg0, One, MASK)
            FindSetRightBit (MASK, Local0)
            If (Local0) { Return (Local0 - One) }
            Return (0x80)
        }
        Device (LNKA)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 1)
            Name (_PRS, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) { 5, 10, 11 } })
            Method (_STA) { Return (LSTA (^^PCI0.ISA.PRQA)) }
            Method (_DIS) { ^^PCI0.ISA.PRQA = 0x80 }
            Method (_CRS) { Return (LCRS (^^PCI0.ISA.PRQA)) }
            Method (_SRS, 1) { ^^PCI0.ISA.PRQA = LSRS (Arg0) }
        }
        Device (LNKB)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 2)
            Name (_PRS, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) { 5, 10, 11 } })
            Method (_STA) { Return (LSTA (^^PCI0.ISA.PRQB)) }
            Method (_DIS) { ^^PCI0.ISA.PRQB = 0x80 }
            Method (_CRS) { Return (LCRS (^^PCI0.ISA.PRQB)) }
            Method (_SRS, 1) { ^^PCI0.ISA.PRQB = LSRS (Arg0) }
        }
        Device (LNKC)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 3)
            Name (_PRS, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) { 5, 10, 11 } })
            Method (_STA) { Return (LSTA (^^PCI0.ISA.PRQC)) }
            Method (_DIS) { ^^PCI0.ISA.PRQC = 0x80 }
            Method (_CRS) { Return (LCRS (^^PCI0.ISA.PRQC)) }
            Method (_SRS, 1) { ^^PCI0.ISA.PRQC = LSRS (Arg0) }
        }
        Device (LNKD)
        {
            Name (_HID, EisaId ("PNP0C0F"))
            Name (_UID, 4)
            Name (_PRS, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) { 5, 10, 11 } })
            Method (_STA) { Return (LSTA (^^PCI0.ISA.PRQD)) }
            Method (_DIS) { ^^PCI0.ISA.PRQD = 0x80 }
            Method (_CRS) { Return (LCRS (^^PCI0.ISA.PRQD)) }
            Method (_SRS, 1) { ^^PCI0.ISA.PRQD = LSRS (Arg0) }
        }
    }
}
