//! How a device's clocks were while it was measured.

use optpipe_configs::profile::{Conditions, Range};
use optpipe_kernels::cuda::nvml;

/// Gathers what a device tells, one reading a pass.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<Conditions>);

impl Watch {
    /// Takes what the device told during a pass; `None` from one that has nothing to tell.
    pub(crate) fn push(&mut self, reading: Option<nvml::Conditions>) {
        let Some(reading) = reading else { return };
        let seen = self.0.get_or_insert_default();
        seen.passes += 1;
        let mut unknown = None;
        let mut take = |range: &mut Option<Range>, reading: nvml::Reading<u32>| match reading {
            Ok(now) => {
                let Range { lowest, highest } = range.unwrap_or(Range { lowest: now, highest: now });
                *range = Some(Range { lowest: lowest.min(now), highest: highest.max(now) });
            }
            Err(why) => unknown = Some(why),
        };
        take(&mut seen.graphics_clock_mhz, reading.graphics_clock_mhz);
        take(&mut seen.memory_clock_mhz, reading.memory_clock_mhz);
        take(&mut seen.temperature_celsius, reading.temperature_celsius);
        match reading.slowed_by {
            Ok(reasons) => {
                seen.throttled_passes += usize::from(!reasons.is_empty());
                for reason in reasons {
                    if !seen.throttle_reasons.iter().any(|known| known == reason) {
                        seen.throttle_reasons.push(reason.to_owned());
                    }
                }
            }
            Err(why) => unknown = Some(why),
        }
        seen.unknown = seen.unknown.take().or(unknown);
    }

    /// All that was told.
    pub(crate) fn finish(self) -> Option<Conditions> {
        self.0
    }
}

/// What to tell the user of it; `None` if there is nothing to worry about.
pub(crate) fn warning(conditions: &Conditions) -> Option<String> {
    if conditions.throttled_passes > 0 {
        return Some(format!(
            "the device was throttled in {} of {} passes: {}",
            conditions.throttled_passes,
            conditions.passes,
            conditions.throttle_reasons.join("; ")
        ));
    }
    let why = conditions.unknown.as_ref()?;
    Some(format!("whether the device was throttled is not known in full: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reading(clock: u32, slowed_by: nvml::Reading<Vec<&'static str>>) -> Option<nvml::Conditions> {
        Some(nvml::Conditions {
            graphics_clock_mhz: Ok(clock),
            memory_clock_mhz: Ok(2619),
            temperature_celsius: Err("the device does not tell".to_owned()),
            slowed_by,
        })
    }

    #[test]
    fn passes_that_were_throttled_are_counted_and_their_reasons_named_once() {
        let mut watch = Watch::default();
        watch.push(reading(1980, Ok(vec![])));
        watch.push(reading(1500, Ok(vec!["too hot", "too much power"])));
        watch.push(reading(1700, Ok(vec!["too hot"])));
        let seen = watch.finish().unwrap();
        assert_eq!((seen.passes, seen.throttled_passes), (3, 2));
        assert_eq!(seen.throttle_reasons, ["too hot", "too much power"]);
        assert_eq!(seen.graphics_clock_mhz, Some(Range { lowest: 1500, highest: 1980 }));
        assert_eq!(seen.temperature_celsius, None);
        assert_eq!(warning(&seen).unwrap(), "the device was throttled in 2 of 3 passes: too hot; too much power");
    }

    #[test]
    fn what_is_not_known_is_said_and_silence_is_no_reading() {
        let mut watch = Watch::default();
        watch.push(None);
        assert_eq!(watch.finish(), None);
        let mut watch = Watch::default();
        watch.push(reading(1980, Err("too old".to_owned())));
        let seen = watch.finish().unwrap();
        assert_eq!((seen.passes, seen.throttled_passes), (1, 0));
        assert!(warning(&seen).unwrap().ends_with("too old"));
    }
}
