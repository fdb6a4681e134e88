//! Matches that look at any bytes of the packet, and at the clock (net/netfilter/xt_string.c, xt_u32.c, xt_time.c, v6.18).

use super::{
    super::{
        clock::TIME_NS,
        field::{Field, Reason},
        outcome::Words,
        read::{Fields, Reader},
    },
    Answer, XtField,
    answer::{self, Test, missing, not, words},
    transport::packet_length,
};
use crate::xtables::matches::{
    payload::{StringMatch, U32, U32Op},
    time::Time,
};

const DAY: i64 = 86_400;

/// A match on bytes, or on the time.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    String(StringMatch),
    U32(U32),
    Time(Time),
}

/// Bytes of the packet from its network header; `None` where the packet ends before them.
pub(super) fn packet_bytes(
    reader: &mut Reader<'_>,
    at: u32,
    count: u32,
) -> Result<Option<Vec<u8>>, Answer> {
    let length = packet_length(reader)?;
    let end = match at.checked_add(count) {
        Some(end) if end <= length => end,
        _ => return Ok(None),
    };
    let found = captured(reader, at, end)?;
    if found.len() as u32 != count {
        return Err(missing("the bytes were not captured"));
    }
    let known: Option<Vec<u8>> = found.into_iter().collect();
    known.map(Some).ok_or(Answer::Unknown(REWRITTEN))
}

const REWRITTEN: Reason = Reason::rewritten("rules have changed the bytes that are looked at");

/// Those bytes from `at` to `end` that were captured, up to the first that was not; `None` for those that rules have changed or will change.
fn captured(reader: &mut Reader<'_>, at: u32, end: u32) -> Result<Vec<Option<u8>>, Answer> {
    let doubtful = reader.doubtful().ok_or(Answer::Unknown(REWRITTEN))?;
    let mut found = Vec::new();
    let mut at = at;
    while at < end {
        let number = u16::try_from(at / 64).map_err(|_| missing("the packet is too long"))?;
        let field = Field::Xt(XtField::Chunk(number));
        let chunk = answer::bytes(reader, field, Answer::Miss)?;
        let from = (at % 64) as usize;
        let to = (end - at).saturating_add(at % 64).min(64) as usize;
        let bytes = chunk.as_slice();
        let part = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
        let known = |place: &u32| !doubtful.iter().any(|range| range.contains(place));
        found.extend(
            (at..)
                .zip(part)
                .map(|(place, byte)| known(&place).then_some(*byte)),
        );
        if part.len() < to - from {
            break;
        }
        at += part.len() as u32;
    }
    Ok(found)
}

impl Bytes {
    pub(super) fn string(want: &StringMatch, fields: &mut Fields) -> Self {
        fields.slot(Field::Xt(XtField::Chunk(0)));
        Self::String(want.clone())
    }

    pub(super) fn u32(want: &U32, fields: &mut Fields) -> Self {
        fields.slot(Field::Xt(XtField::Chunk(0)));
        Self::U32(want.clone())
    }

    pub(super) fn time(want: &Time, fields: &mut Fields) -> Self {
        fields.slot(Field::Meta(TIME_NS));
        Self::Time(want.clone())
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match self {
            Self::String(want) => Ok(contains(want, reader)? != want.pattern.inverted),
            Self::U32(want) => Ok(u32_holds(want, reader)? != want.inverted),
            Self::Time(want) => {
                let instant = reader.instant().map_err(Answer::Unknown)?;
                let now = match want.local {
                    true => instant.local().map_err(Answer::Unknown)?,
                    false => instant.second,
                };
                Ok(time_holds(want, now))
            }
        }
    }

    pub(super) fn words(&self) -> Words {
        match self {
            Self::String(want) => {
                let pattern = want.pattern.want.escape_ascii();
                let wanted = format!("{}\"{pattern}\"", not(want.pattern.inverted));
                words("string", wanted, "")
            }
            Self::U32(_) => words("u32", "", ""),
            Self::Time(_) => words("time", "", ""),
        }
    }
}

/// Whether the pattern begins and ends between the two offsets (`skb_find_text()`, net/core/skbuff.c, lib/ts_bm.c, lib/ts_kmp.c, v6.18).
fn contains(want: &StringMatch, reader: &mut Reader<'_>) -> Test {
    let pattern = &want.pattern.want;
    if pattern.is_empty() {
        return Err(missing("an empty string is looked for"));
    }
    // `fsm` takes its pattern for something else.
    if !matches!(want.algo.as_str(), "bm" | "kmp") {
        return Err(missing("the algorithm of a string is not known"));
    }
    // The kernel's letters are those of Latin-1, and `bm` may skip some of them.
    if want.ignore_case && !pattern.is_ascii() {
        return Err(missing("letters of either case beyond ASCII are compared"));
    }
    let (from, to) = (u32::from(want.from), u32::from(want.to));
    let end = to.min(packet_length(reader)?);
    let window = captured(reader, from, end)?;
    // With `unknown` for every byte that rules have changed.
    let found = |unknown: bool| {
        window.windows(pattern.len()).any(|part| {
            part.iter().zip(pattern).all(|(has, want_byte)| match has {
                Some(has) if want.ignore_case => has.eq_ignore_ascii_case(want_byte),
                Some(has) => has == want_byte,
                None => unknown,
            })
        })
    };
    if found(false) {
        return Ok(true);
    }
    if found(true) {
        return Err(Answer::Unknown(REWRITTEN));
    }
    if (window.len() as u32) < end.saturating_sub(from) {
        return Err(missing(
            "the bytes that the string may be in were not captured",
        ));
    }
    Ok(false)
}

/// `u32_match_it()`.
fn u32_holds(want: &U32, reader: &mut Reader<'_>) -> Test {
    for test in &want.tests {
        let mut at: u32 = 0;
        let Some(mut value) = word(reader, test.start)? else {
            return Ok(false);
        };
        for (op, number) in &test.steps {
            match op {
                U32Op::And => value &= number,
                // A shift by 32 and more takes the count's lowest five bits on x86 and its kin.
                U32Op::ShiftLeft => value = value.wrapping_shl(*number),
                U32Op::ShiftRight => value = value.wrapping_shr(*number),
                U32Op::At => {
                    let Some(moved) = at.checked_add(value) else {
                        return Ok(false);
                    };
                    at = moved;
                    let place = at.checked_add(*number);
                    let read = place.map(|place| word(reader, place)).transpose()?;
                    let Some(read) = read.flatten() else {
                        return Ok(false);
                    };
                    value = read;
                }
                U32Op::Other(_) => return Err(missing("u32 has an unknown operator")),
            }
        }
        if !test.values.iter().any(|span| span.contains(&value)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn word(reader: &mut Reader<'_>, at: u32) -> Result<Option<u32>, Answer> {
    let bytes = packet_bytes(reader, at, 4)?;
    Ok(bytes.and_then(|bytes| bytes.first_chunk().map(|b| u32::from_be_bytes(*b))))
}

/// `time_mt()`, of seconds in UTC or in the kernel's time zone.
fn time_holds(want: &Time, now: i64) -> bool {
    if now < i64::from(want.date_start) || now > i64::from(want.date_stop) {
        return false;
    }
    let second = now.rem_euclid(DAY);
    let (start, stop) = (i64::from(want.day_start), i64::from(want.day_stop));
    let mut stamp = now;
    if start < stop {
        if second < start || second > stop {
            return false;
        }
    } else {
        if second < start && second > stop {
            return false;
        }
        if want.contiguous && second <= stop {
            stamp -= DAY;
        }
    }
    let days = stamp.div_euclid(DAY);
    // 1970 began on a Thursday; Monday is 1, Sunday 7.
    let weekday = (days + 3).rem_euclid(7) + 1;
    want.weekdays >> weekday & 1 == 1
        && (want.monthdays == u32::MAX - 1 || want.monthdays >> month_day(days) & 1 == 1)
}

/// Day of the month, from 1, of a day counted from 1970-01-01 (years that begin in March, in eras of 400).
fn month_day(days: i64) -> i64 {
    let of_era = (days + 719_468).rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    of_year - (153 * ((5 * of_year + 2) / 153) + 2) / 5 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Time = Time {
        date_start: 0,
        date_stop: u32::MAX,
        day_start: 0,
        day_stop: 86_399,
        monthdays: u32::MAX - 1,
        weekdays: 0xfe,
        local: false,
        contiguous: false,
    };

    #[test]
    fn days_of_months() {
        for (days, expected) in [
            (0, 1),
            (30, 31),
            (31, 1),
            (58, 28),
            (59, 1),
            // 2000-02-29, 2000-03-01, 2026-11-22.
            (11_016, 29),
            (11_017, 1),
            (20_779, 22),
            (-1, 31),
        ] {
            assert_eq!(month_day(days), expected, "{days}");
        }
    }

    #[test]
    fn times() {
        // Sunday 2026-11-22, 19:15:00.
        let now = 20_779 * DAY + 19 * 3600 + 15 * 60;
        let with = |change: fn(&mut Time)| {
            let mut want = ALWAYS;
            change(&mut want);
            time_holds(&want, now)
        };
        assert!(with(|_| {}));
        assert!(with(|t| t.weekdays = 1 << 7));
        assert!(!with(|t| t.weekdays = 1 << 6));
        assert!(with(|t| t.monthdays = 1 << 22));
        assert!(!with(|t| t.monthdays = 1 << 21));
        assert!(with(|t| (t.day_start, t.day_stop) = (69_300, 69_300 + 1)));
        assert!(!with(|t| (t.day_start, t.day_stop) = (0, 69_299)));
        assert!(
            !with(|t| (t.day_start, t.day_stop) = (69_301, 3600)),
            "over midnight"
        );
        assert!(with(|t| (t.day_start, t.day_stop) = (82_800, 69_300)));
        assert!(with(|t| {
            (t.day_start, t.day_stop) = (82_800, 69_300);
            (t.contiguous, t.weekdays) = (true, 1 << 6);
        }));
        assert!(!with(|t| t.date_stop = 1));
    }
}
