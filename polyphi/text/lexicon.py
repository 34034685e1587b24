"""The small vocabulary that text, vision and speech share: languages, numbers, colours, shapes and everyday nouns.

Japanese is written in kana, so that espeak-ng, which reads no kanji, can say it. Words and number grammars are our
own.

>>> number_words(42, "de"), NOUNS["cat"]["fr"]
('zweiundvierzig', 'chat')
"""

from collections.abc import Mapping

from polyphi.messages import LANGUAGES

Words = dict[str, str]
"""Language code -> word."""


def _table(text: str) -> dict[str, Words]:
    """Rows of `en fr de it pt es zh ja` words, keyed by the English one."""
    order = ("en", "fr", "de", "it", "pt", "es", "zh", "ja")
    rows = [line.split() for line in text.strip().splitlines()]
    assert all(len(row) == len(order) for row in rows), "a row of the lexicon has not eight words"
    return {row[0]: dict(zip(order, row, strict=True)) for row in rows}


COLOURS: dict[str, Words] = _table("""
red     rouge   rot      rosso      vermelho  rojo      红色  あか
blue    bleu    blau     blu        azul      azul      蓝色  あお
green   vert    grün     verde      verde     verde     绿色  みどり
yellow  jaune   gelb     giallo     amarelo   amarillo  黄色  きいろ
orange  orange  orange   arancione  laranja   naranja   橙色  オレンジ
purple  violet  lila     viola      roxo      morado    紫色  むらさき
pink    rose    rosa     rosa       rosa      rosa      粉色  ピンク
black   noir    schwarz  nero       preto     negro     黑色  くろ
""")

COLOUR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "blue": (30, 70, 220),
    "green": (30, 150, 50),
    "yellow": (245, 215, 20),
    "orange": (250, 135, 10),
    "purple": (125, 40, 165),
    "pink": (250, 130, 185),
    "black": (15, 15, 15),
}
"""How each colour is drawn, so that a picture and its words agree (sRGB, 0 to 255)."""

SHAPES: dict[str, Words] = _table("""
circle    cercle    Kreis    cerchio    círculo    círculo    圆形    まる
square    carré     Quadrat  quadrato   quadrado   cuadrado   正方形  しかく
triangle  triangle  Dreieck  triangolo  triângulo  triángulo  三角形  さんかく
star      étoile    Stern    stella     estrela    estrella   星形    ほし
heart     cœur      Herz     cuore      coração    corazón    心形    ハート
cross     croix     Kreuz    croce      cruz       cruz       十字    じゅうじ
""")

NOUNS: dict[str, Words] = _table("""
cat        chat       Katze         gatto       gato       gato       猫      ねこ
dog        chien      Hund          cane        cachorro   perro      狗      いぬ
horse      cheval     Pferd         cavallo     cavalo     caballo    马      うま
cow        vache      Kuh           mucca       vaca       vaca       奶牛    うし
pig        cochon     Schwein       maiale      porco      cerdo      猪      ぶた
sheep      mouton     Schaf         pecora      ovelha     oveja      绵羊    ひつじ
rabbit     lapin      Kaninchen     coniglio    coelho     conejo     兔子    うさぎ
mouse      souris     Maus          topo        rato       ratón      老鼠    ねずみ
bird       oiseau     Vogel         uccello     pássaro    pájaro     鸟      とり
duck       canard     Ente          anatra      pato       pato       鸭子    あひる
fish       poisson    Fisch         pesce       peixe      pez        鱼      さかな
frog       grenouille Frosch        rana        sapo       rana       青蛙    かえる
snake      serpent    Schlange      serpente    cobra      serpiente  蛇      へび
bear       ours       Bär           orso        urso       oso        熊      くま
lion       lion       Löwe          leone       leão       león       狮子    ライオン
tiger      tigre      Tiger         tigre       tigre      tigre      老虎    とら
elephant   éléphant   Elefant       elefante    elefante   elefante   大象    ぞう
monkey     singe      Affe          scimmia     macaco     mono       猴子    さる
butterfly  papillon   Schmetterling farfalla    borboleta  mariposa   蝴蝶    ちょう
bee        abeille    Biene         ape         abelha     abeja      蜜蜂    みつばち
apple      pomme      Apfel         mela        maçã       manzana    苹果    りんご
banana     banane     Banane        banana      banana     plátano    香蕉    バナナ
bread      pain       Brot          pane        pão        pan        面包    パン
egg        œuf        Ei            uovo        ovo        huevo      鸡蛋    たまご
water      eau        Wasser        acqua       água       agua       水      みず
house      maison     Haus          casa        casa       casa       房子    いえ
tree       arbre      Baum          albero      árvore     árbol      树      き
flower     fleur      Blume         fiore       flor       flor       花      はな
sun        soleil     Sonne         sole        sol        sol        太阳    たいよう
moon       lune       Mond          luna        lua        luna       月亮    つき
car        voiture    Auto          macchina    carro      coche      汽车    くるま
train      train      Zug           treno       trem       tren       火车    でんしゃ
boat       bateau     Boot          barca       barco      barco      船      ふね
plane      avion      Flugzeug      aereo       avião      avión      飞机    ひこうき
bicycle    vélo       Fahrrad       bicicletta  bicicleta  bicicleta  自行车  じてんしゃ
ball       ballon     Ball          palla       bola       pelota     球      ボール
book       livre      Buch          libro       livro      libro      书      ほん
chair      chaise     Stuhl         sedia       cadeira    silla      椅子    いす
clock      horloge    Uhr           orologio    relógio    reloj      时钟    とけい
guitar     guitare    Gitarre       chitarra    violão     guitarra   吉他    ギター
hat        chapeau    Hut           cappello    chapéu     sombrero   帽子    ぼうし
key        clé        Schlüssel     chiave      chave      llave      钥匙    かぎ
cup        tasse      Tasse         tazza       xícara     taza       杯子    カップ
""")

YES: Words = {
    "en": "yes", "fr": "oui", "de": "ja", "it": "sì", "pt": "sim", "es": "sí", "zh": "是", "ja": "はい",
}  # fmt: skip
NO: Words = {
    "en": "no", "fr": "non", "de": "nein", "it": "no", "pt": "não", "es": "no", "zh": "否", "ja": "いいえ",
}  # fmt: skip

_TO_TWENTY: dict[str, list[str]] = {
    language: words.split()
    for language, words in {
        "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize "
        "dix-sept dix-huit dix-neuf",
        "de": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn",
        "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici "
        "sedici diciassette diciotto diciannove",
        "pt": "zero um dois três quatro cinco seis sete oito nove dez onze doze treze quatorze quinze dezesseis "
        "dezessete dezoito dezenove",
        "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
        "diecisiete dieciocho diecinueve",
        "zh": "零 一 二 三 四 五 六 七 八 九",
        "ja": "ぜろ いち に さん よん ご ろく なな はち きゅう",
    }.items()
}

_TENS: dict[str, list[str]] = {
    language: words.split()
    for language, words in {
        "en": "twenty thirty forty fifty sixty seventy eighty ninety",
        "fr": "vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt",
        "de": "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
        "it": "venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
        "pt": "vinte trinta quarenta cinquenta sessenta setenta oitenta noventa",
        "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    }.items()
}
_TEN = {"zh": "十", "ja": "じゅう"}
_SPANISH_TWENTIES = {22: "veintidós", 23: "veintitrés", 26: "veintiséis"}

DIGIT_WORDS: dict[str, list[str]] = {language: words[:10] for language, words in _TO_TWENTY.items()}
"""Language code -> the ten words of the digits 0 to 9."""


def number_words(n: int, language: str) -> str:
    """The cardinal `n` (0 to 99) in words, as counted aloud; Japanese in kana, Portuguese as in Brazil."""
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")
    if not 0 <= n <= 99:
        raise ValueError(f"number words go from 0 to 99, found {n}")
    tens, ones = divmod(n, 10)
    small = _TO_TWENTY[language]
    if language in _TEN:
        head = "" if tens == 0 else (small[tens] if tens > 1 else "") + _TEN[language]
        return head + (small[ones] if ones or not tens else "")
    if n < 20:
        return small[n]
    ten = _TENS[language][tens - 2]
    if language == "fr":
        return _french(n, tens, ones, ten)
    if ones == 0:
        return ten
    if language == "en":
        return f"{ten}-{small[ones]}"
    if language == "de":
        return f"{'ein' if ones == 1 else small[ones]}und{ten}"
    if language == "it":
        return (ten[:-1] if ones in (1, 8) else ten) + ("tré" if ones == 3 else small[ones])
    if language == "es":
        return (
            _SPANISH_TWENTIES.get(n, "veinti" + small[ones])
            if tens == 2
            else f"{ten} y {small[ones]}"
        )
    return f"{ten} e {small[ones]}"


def _french(n: int, tens: int, ones: int, ten: str) -> str:
    """French counts 70 and 90 on top of sixty and eighty; "et" joins one and eleven, but not after eighty."""
    small = _TO_TWENTY["fr"]
    rest = ones + 10 if tens in (7, 9) else ones
    if rest == 0:
        return "quatre-vingts" if n == 80 else ten
    return f"{ten} et {small[rest]}" if rest in (1, 11) and tens < 8 else f"{ten}-{small[rest]}"


def digit_words(digits: str, language: str) -> str:
    """A string of digits spelled digit by digit, words apart in every language: "42", "fr" -> "quatre deux"."""
    return " ".join(DIGIT_WORDS[language][int(d)] for d in digits)


def lexicon() -> Mapping[str, Words]:
    """Every colour, shape and noun by its English word."""
    return {**COLOURS, **SHAPES, **NOUNS}
