//! Ceilings that were set in `user_config.h` when the library was built; `None` where there is none.

include!(concat!(env!("OUT_DIR"), "/ceilings.rs"));

/// What is said when there is more of something than its ceiling allows; `None` when all is well.
#[must_use]
pub fn passed(name: &str, ceiling: Option<u64>, wanted: u64) -> Option<String> {
    let ceiling = ceiling.filter(|ceiling| wanted > *ceiling)?;
    Some(format!("{wanted} is more than {name} {ceiling}, with which the library was built"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_holds_only_where_there_is_one() {
        assert_eq!(passed("CKPT_MAXSHM", None, u64::MAX), None);
        assert_eq!(passed("CKPT_MAXSHM", Some(4), 4), None);
        assert!(passed("CKPT_MAXSHM", Some(4), 5).is_some_and(|text| text.contains("CKPT_MAXSHM 4")));
    }
}
