"""Which names and words do the tasks of rtp-tiny use?  Lists, read by `tasks.py`."""
# ruff: noqa: SIM905  (a list literal of these would fill a page)

NAMES = (
    "Anna Ben Clara David Emma Finn Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam "
    "Tina Victor Wendy Xaver Yara Zoe Adam Bella Carl Diana Erik Flora Georg Hanna Ivan Julia "
    "Kurt Lena Max Nina Otto Petra Ron Sofia Tom Ute Vera Will Ann Bob Eve Mia"
).split()
THINGS = "code number age room phone badge locker score seat ticket price weight".split()
WORDS = (
    "apple river stone cloud table green light paper house water music silver garden window "
    "bread tiger ocean candle forest bridge yellow winter summer button castle dragon engine "
    "feather guitar hammer island jacket kitten ladder mirror needle orange pencil rabbit "
    "shadow tunnel violin wagon zebra red blue black white small large fast slow"
).split()
FIELDS = "name age city color size count price id title year email status".split()
SYLLABLES = "ba ke li mo ru sa te vi no ga de fi lu po ra zi".split()
