"""Tool calls that models write into their text: found as it comes."""
