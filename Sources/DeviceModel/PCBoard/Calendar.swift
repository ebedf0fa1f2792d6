// The Gregorian calendar, for the clock chip.
// Source: the rule of leap years; days are counted from 1 March so that a leap day comes last.
// Modelled: years 0 to 9999. Not modelled: leap seconds, time zones.
// Quirks: impossible dates, which a guest may write, are carried over (32 January is 1 February).

/// A civil date and time.
struct Calendar: Equatable, Sendable {
    private(set) var year: Int
    private(set) var month: Int
    private(set) var day: Int
    private(set) var hour: Int
    private(set) var minute: Int
    private(set) var second: Int

    init(year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int) {
        (self.year, self.month, self.day) = (year, month, day)
        (self.hour, self.minute, self.second) = (hour, minute, second)
    }

    /// The date `seconds` after the start of 1970, within the years 0 to 9999.
    init(seconds: Int64) {
        let bounded = min(max(seconds, -62_167_219_200), 253_402_300_799)
        let days = Int((bounded - Self.remainder(bounded, 86_400)) / 86_400)
        let time = Int(Self.remainder(bounded, 86_400))
        // Day 0 is 1 March of year 0; 400 years have 146097 days.
        let shifted = days + 719_468
        let era = (shifted - Int(Self.remainder(Int64(shifted), 146_097))) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let monthFromMarch = (5 * dayOfYear + 2) / 153
        month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
        day = dayOfYear - (153 * monthFromMarch + 2) / 5 + 1
        year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
        (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60)
    }

    private static func remainder(_ value: Int64, _ divisor: Int64) -> Int64 {
        let rest = value % divisor
        return rest < 0 ? rest + divisor : rest
    }

    /// Days since 1 January 1970.
    private var days: Int {
        let wanted = month < 1 ? 0 : month - 1
        let shiftedYear = year + wanted / 12 - (wanted % 12 < 2 ? 1 : 0)
        let monthFromMarch = (wanted % 12 + 10) % 12
        let era = shiftedYear >= 0 ? shiftedYear / 400 : -1
        let yearOfEra = shiftedYear - era * 400
        let dayOfYear = (153 * monthFromMarch + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }

    /// Seconds since the start of 1970.
    var seconds: Int64 { Int64(days) * 86_400 + Int64(hour * 3600 + minute * 60 + second) }

    /// 1 is Sunday. 1 January 1970 was a Thursday.
    var dayOfWeek: Int { Int(Self.remainder(Int64(days) + 4, 7)) + 1 }
}
