"""Letters that look like those of ASCII, after NFKC and case folding.

From Unicode's confusables.txt (UTS #39), single letters only, each with the lower case of its look-alike where only the
capitals look alike. Copyright Unicode, Inc.: https://www.unicode.org/license.txt
"""

OF = {
    "a": "ɑαаᎪᗅꓮ𐊠𖽀𝚨𝛂𝛢𝛼𝜜𝜶𝝖𝝰𝞐𝞪",
    "b": "ƅβвьᏏᏴᑲᖯᗷꓐꞵ𐊂𐊡𐌁𝚩𝛣𝜝𝝗𝞑",
    "c": "ϲсᏟᴄⲥꓚ𐊢𐌂𐐽𐔜",
    "d": "ԁᎠᏧᑯᗞᗪꓒꓓ",
    "e": "εеҽᎬⴹꓰꬲ𐊆𑣆𑣎𝚬𝛦𝜠𝝚𝞔",
    "f": "ϝքᖴẝꓝꞙꬵ𐊇𐊥𐔥𑣂𝟊",
    "g": "ƍɡԍցᏀᏳᶃꓖ",
    "h": "ηнһհᎻᏂᕼⲏꓧ𐋏𝚮𝛨𝜢𝝜𝞖",
    "i": "ıɩɪͺιіӏᎥꙇ𑣃𝚤𝛊𝜄𝜾𝝸𝞲",
    "j": "ʝϳјᎫᒍꓙ",
    "k": "κкᏦᛕⲕꓗ𐔘𝚱𝛫𝜥𝝟𝞙",
    "l": "ǀᏞᒪᛁⲓⳑⵏꓡꓲ𐊊𐌉𐑃𐔦𑣒𖼖𖼨𝚰𝛪𝜤𝝞𝞘",
    "m": "μϻмᎷᗰᛖⲙꓟ𐊰𐌑𝚳𝛭𝜧𝝡𝞛",
    "n": "ոռⲛꓠ𐔓𝚴𝛮𝜨𝝢𝞜",
    "o": "οσоօଠഠဝჿዐᴏᴑⲟⵔꓳꬽ𐊒𐊫𐐬𐓪𐔖𑣈𑣕𑣗𝚶𝛐𝛔𝛰𝜊𝜎𝜪𝝄𝝈𝝤𝝾𝞂𝞞𝞸𝞼",
    "p": "ρрᏢᑭⲣꓑ𐊕𝚸𝛒𝛠𝛲𝜌𝜚𝜬𝝆𝝔𝝦𝞀𝞎𝞠𝞺𝟈",
    "q": "ԛգզⵕ",
    "r": "ʀгᎡᎱᏒᖇᴦⲅꓣꭇꭈ𐓜𖼵",
    "s": "ƽѕտᏕᏚꓢꜱ𐊖𐑈𑣁𖼺",
    "t": "τтᎢⲧꓔ𐊗𐊱𐌕𖼊𝚻𝛵𝜯𝝩𝞣",
    "u": "ʋυսሀᑌᴜꓴꞟꭎꭒ𐓶𑣘𖽂𝛖𝜐𝝊𝞄𝞾",
    "v": "νѵᏙᐯᴠⴸꓦꛟ𐔝𑜆𑣀𖼈𝛎𝜈𝝂𝝼𝞶",
    "w": "ɯѡԝաᎳᏔᴡꓪ𑜊𑜎𑜏",
    "x": "χхᕁᕽᚷⲭⵝꓫꭓ𐊐𐊴𐌗𐔧𝚾𝛸𝜲𝝬𝞦",
    "y": "ɣʏγϒуүყᎩᎽᶌỿℽⲩꓬꭚ𐊲𑣜𖽃𝚼𝛄𝛶𝛾𝜰𝜸𝝪𝝲𝞤𝞬",
    "z": "ζᏃᴢꓜ𑣄𑣉𝚭𝛧𝜡𝝛𝞕",
}
ASCII = str.maketrans({letter: ascii_letter for ascii_letter, letters in OF.items() for letter in letters})
GREEK_CAPITALS = str.maketrans("ΝΥ", "NY")  # their small letters look like v and u
