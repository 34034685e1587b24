"""Sentences with personal information planted in them, and look-alikes without any, in eight languages: what `pii.py`
is measured on.

>>> next(cases("en", 1, seed=0))
('I met Hannah Clarke at the station.', [('NAME', 6, 19)])

The names are our own, not those of the gazetteers; some are of other countries than the sentence. Telephone numbers
follow the formats people write and aren't checked to be in use. Spelled forms stand in half of the phone, card and
e-mail sentences without capitals or full stops, as a recogniser writes them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from random import Random

from polyphi.curate.text import DENSE
from polyphi.text.lexicon import LANGUAGES, digit_words

Planted = tuple[str, int, int]

NAMES = {
    "en": "John Smith|Olivia Bennett|Priya Raman|Liam O'Connor|Zofia Kowalska|Marcus Webb|Hannah Clarke|Ngozi Okafor",
    "fr": "Jean Dupont|Camille Lefèvre|Élodie Marchand|Thierry Roussel"
    "|Amina Benali|Luc Fontaine|Hélène Girard|Ko Tanaka",
    "de": "Anna Schmidt|Jürgen Weber|Katrin Hoffmann|Uwe Baumgartner|Mehmet Yıldız|Lena Vogel|Stefan Kraus|Ida Holm",
    "it": "Marco Rossi|Giulia Bianchi|Francesca Esposito|Luca De Santis"
    "|Alessia Ferri|Paolo Greco|Ilaria Conti|Wei Zhang",
    "pt": "João da Silva|Maria Oliveira|Ana Paula Costa|Rui Carvalho"
    "|Beatriz Almeida|Tiago Nunes|Inês Moreira|Olga Petrova",
    "es": "Lucía García|Carlos Fernández|María del Mar Ruiz|Javier Ortega"
    "|Elena Navarro|Diego Romero|Nuria Vidal|Yuki Mori",
    "zh": "王小明|李建国|张伟|刘洋|陈桂英|赵子涵|欧阳娜娜|周杰",
    "ja": "田中太郎|佐藤花子|鈴木 健一|高橋 美咲|伊藤翔|渡辺さくら|小林 直樹|加藤 恵",
}
"""Eight people per language."""

_WRITTEN = {
    "en": """NAME: I met {} at the station. | Please ask Mr. {} about it. | My name is {}. | {} wrote the minutes.
        EMAIL: Write to {} for details. | Her address is {}, I think.
        PHONE: Call me tomorrow: {}. | The office (phone {}) is closed. | You can use {} in the evening.
        CARD: My card is {}. | They charged {} twice.
        IBAN: Send the rent to {}. | IBAN: {}
        IP: The login came from {}. | Host {} did not answer.""",
    "fr": """NAME: J'ai rencontré {} à la gare. | Demandez à Mme {}. | Je m'appelle {}. | {} a écrit le compte rendu.
        EMAIL: Écrivez à {} pour en savoir plus. | Son adresse est {}, je crois.
        PHONE: Appelle-moi demain : {}. | Le bureau (tél. {}) est fermé. | Le soir c'est le {}.
        CARD: Ma carte est la {}. | On a débité {} deux fois.
        IBAN: Le loyer va sur {}. | IBAN : {}
        IP: La connexion venait de {}. | L'hôte {} ne répond pas.""",
    "de": """NAME: Ich traf {} am Bahnhof. | Fragen Sie bitte Frau {}. | Mein Name ist {}. | {} schrieb das Protokoll.
        EMAIL: Schreiben Sie an {}. | Ihre Adresse ist {}, glaube ich.
        PHONE: Ruf mich morgen an: {}. | Das Büro (Tel. {}) ist zu. | Abends geht {}.
        CARD: Meine Karte ist {}. | Man buchte {} zweimal ab.
        IBAN: Die Miete geht auf {}. | IBAN: {}
        IP: Die Anmeldung kam von {}. | Rechner {} antwortet nicht.""",
    "it": """NAME: Ho incontrato {} alla stazione. | Chieda alla Sig.ra {}. | Mi chiamo {}.
        | {} ha scritto il verbale.
        EMAIL: Scriva a {} per i dettagli. | Il suo indirizzo è {}, credo.
        PHONE: Chiamami domani: {}. | L'ufficio (tel. {}) è chiuso. | La sera va bene {}.
        CARD: La mia carta è {}. | Hanno addebitato {} due volte.
        IBAN: L'affitto va su {}. | IBAN: {}
        IP: L'accesso veniva da {}. | L'host {} non risponde.""",
    "pt": """NAME: Encontrei {} na estação. | Pergunte ao Sr. {}. | Meu nome é {}. | {} escreveu a ata.
        EMAIL: Escreva para {} e pergunte. | O endereço dela é {}, acho.
        PHONE: Ligue para mim amanhã: {}. | O escritório (tel. {}) fechou. | À noite serve {}.
        CARD: Meu cartão é {}. | Cobraram {} duas vezes.
        IBAN: O aluguel vai para {}. | IBAN: {}
        IP: O acesso veio de {}. | O servidor {} não responde.""",
    "es": """NAME: Me encontré con {} en la estación. | Pregunte a la Sra. {}. | Me llamo {}. | {} escribió el acta.
        EMAIL: Escriba a {} para más detalles. | Su dirección es {}, creo.
        PHONE: Llámame mañana: {}. | La oficina (tel. {}) está cerrada. | Por la noche va bien {}.
        CARD: Mi tarjeta es {}. | Cobraron {} dos veces.
        IBAN: El alquiler va a {}. | IBAN: {}
        IP: El acceso vino de {}. | El servidor {} no responde.""",
    "zh": """NAME: 昨天我见到了{}。 | 请问{}先生在吗？ | 大家好，我叫{}。 | 会议记录由{}整理。
        EMAIL: 请发邮件到{}联系。 | 她的邮箱是{}。
        PHONE: 明天给我打电话：{}。 | 办公室（电话{}）关门了。 | 晚上可以打{}。
        CARD: 我的卡号是{}。 | {}被扣了两次款。
        IBAN: 房租请转到{}。 | IBAN：{}
        IP: 登录来自{}。 | 主机{}没有响应。""",
    "ja": """NAME: 昨日、駅で{}に会いました。 | {}さんに聞いてください。 | 私は{}と申します。 | 議事録は{}が書いた。
        EMAIL: 詳しくは{}までご連絡ください。 | メールは{}です。
        PHONE: 明日電話してください：{}。 | 事務所（電話{}）は閉まっています。 | 夜は{}でお願いします。
        CARD: カード番号は{}です。 | {}に二回請求されました。
        IBAN: 家賃は{}へ振り込みます。 | IBAN：{}
        IP: ログイン元は{}でした。 | ホスト{}が応答しません。""",
}
_SPOKEN = {
    "en": ("my number is {}", "the card is {} okay", "it's {} all lower case", "at", "dot"),
    "fr": (
        "mon numéro c'est le {}",
        "la carte c'est {} voilà",
        "c'est {} merci",
        "arobase",
        "point",
    ),
    "de": ("meine nummer ist {}", "die karte ist {} gut", "schreib an {} bitte", "ät", "punkt"),
    "it": ("il mio numero è {}", "la carta è {} va bene", "è {} grazie", "chiocciola", "punto"),
    "pt": ("meu número é {}", "o cartão é {} certo", "é {} obrigado", "arroba", "ponto"),
    "es": ("mi número es {}", "la tarjeta es {} vale", "es {} gracias", "arroba", "punto"),
    "zh": ("我的号码是{}", "卡号是{}谢谢", "邮箱是{}谢谢", "艾特", "点"),
    "ja": ("電話番号は{}です", "カード番号は{}です", "メールは{}です", "アットマーク", "ドット"),
}  # phone, card, e-mail, "@", "."
_PHONES = {
    "en": "(212) 7##-#### | 415-6##-#### | +44 20 7### #### | 07911 1#####",
    "fr": "06 ## ## ## ## | 01 4# ## ## ## | +33 6 ## ## ## ## | 07.##.##.##.##",
    "de": "030 2######## | 0171 3###### | +49 89 4######## | 0151/2#######",
    "it": "333 ### #### | 02 4### #### | +39 347 ####### | 06 5#######",
    "pt": "(11) 9####-#### | (21) 3###-#### | +55 11 9####-#### | 11 9####-####",
    "es": "612 ### ### | 91 5## ## ## | +34 655 ## ## ## | 677-###-###",
    "zh": "138######## | 010-8####### | +86 139 #### #### | 021-6#######",
    "ja": "090-4###-#### | 03-5###-#### | +81 90 3### #### | 080-5###-####",
}
_LOOKALIKES = {
    "en": """Version 10.4.12.3 fixes it. | Order number 4155 5526 71 has shipped.
        | It happened on 2024-03-15 at 10:30:22.
        | 3.14159265 times 12 is 37.7 | ISBN 978-3-16-148410-0 is out of print. | Invoice 4539578763621486 is due.
        | Use @property in Python 3.11.2. | The Old Bridge in New York opened in May 1883.
        | Add 1200 + 3400 = 4600 to it.
        | one two three four five six seven eight nine ten | look at example dot com for more | Prices rose 2019-2024.
        | The March Report and Open Office were read. | Local host 192.168.0.1 and 127.0.0.1 are fine.""",
    "fr": """La version 10.4.12.3 corrige cela. | La commande 06 12 34 56 78 9 est partie. | Le 15/03/2024 à 10:30:22.
        | 3,14159265 fois 12 font 37,7 | ISBN 978-3-16-148410-0 épuisé. | Facture 4539578763621486 à payer.
        | Voir @property dans Python 3.11.2. | Le Pont Neuf à Paris ouvrit en 1607. | 1200 + 3400 = 4600 en tout.
        | un deux trois quatre cinq six sept huit neuf dix | Le Grand Palais et la Tour Eiffel.
        | 192.168.0.1 est locale.""",
    "de": """Version 10.4.12.3 behebt das. | Bestellung 0171 3456789 12 ist unterwegs.
        | Am 15.03.2024 um 10:30:22 Uhr.
        | 3,14159265 mal 12 ist 37,7 | ISBN 978-3-16-148410-0 vergriffen. | Rechnung 4539578763621486 ist offen.
        | Siehe @property in Python 3.11.2. | Der Neue Markt Platz liegt am Alten Rathaus. | 1200 + 3400 = 4600 Euro.
        | eins zwei drei vier fünf sechs sieben acht neun zehn | Ernst Fall und Wolf Rudel sind Wörter.
        | 192.168.0.1 lokal.
        | Die Rose Blüte beginnt im Mai Monat. | Frau Präsidentin, die Zeit läuft.""",
    "it": """La versione 10.4.12.3 lo corregge. | L'ordine 333 123 4567 89 è partito. | Il 15/03/2024 alle 10:30:22.
        | 3,14159265 per 12 fa 37,7 | ISBN 978-3-16-148410-0 esaurito. | Fattura 4539578763621486 da pagare.
        | Vedi @property in Python 3.11.2. | Il Ponte Vecchio di Firenze. | 1200 + 3400 = 4600 euro.
        | uno due tre quattro cinque sei sette otto nove dieci | La Santa Sede e la Rosa Bianca.
        | 192.168.0.1 è locale.""",
    "pt": """A versão 10.4.12.3 corrige isso. | O pedido 11 91234-5678 90 foi enviado. | Em 15/03/2024 às 10:30:22.
        | 3,14159265 vezes 12 dá 37,7 | ISBN 978-3-16-148410-0 esgotado. | Fatura 4539578763621486 em aberto.
        | Veja @property no Python 3.11.2. | A Ponte Nova do Rio Grande. | 1200 + 3400 = 4600 reais.
        | um dois três quatro cinco seis sete oito nove dez | A Santa Casa e a Luz Verde. | 192.168.0.1 é local.""",
    "es": """La versión 10.4.12.3 lo corrige. | El pedido 612 345 678 90 salió. | El 15/03/2024 a las 10:30:22.
        | 3,14159265 por 12 son 37,7 | ISBN 978-3-16-148410-0 agotado. | Factura 4539578763621486 pendiente.
        | Vea @property en Python 3.11.2. | El Puente Nuevo de Ronda. | 1200 + 3400 = 4600 euros.
        | uno dos tres cuatro cinco seis siete ocho nueve diez | La Cruz Roja y el Mar Menor.
        | 192.168.0.1 es local.""",
    "zh": """版本10.4.12.3已修复。 | 订单号13812345678已发货。 | 2024-03-15 10:30:22发生。 | 3.14159265乘以12等于37.7
        | ISBN 978-3-16-148410-0绝版。 | 发票编号4539578763621486未付。 | 参见Python 3.11.2的@property。
        | 高楼大厦和黄河大桥。 | 1200 + 3400 = 4600元。 | 一二三四五六七八九十 | 192.168.0.1是本机地址。
        | 白天和周末都开门。""",
    "ja": """バージョン10.4.12.3で修正。 | 注文番号090-1234-5678-90を発送。 | 2024-03-15 10:30:22に発生。
        | 3.14159265かける12は37.7 | ISBN 978-3-16-148410-0は絶版。 | 請求番号4539578763621486は未払い。
        | Python 3.11.2の@property。 | 山田線と中村橋駅。 | 1200 + 3400 = 4600円。
        | いちにさんしごろくななはちきゅうじゅう
        | 192.168.0.1はローカル。 | 森の中に石橋がある。""",
}

FRESH = {
    "en": """Hi [NAME:Rebecca], it's [NAME:Tom Haverford] from the clinic, ring [PHONE:(312) 640-2218] before five.
        | Best regards, Dr. [NAME:Amara Nwosu] | so that's [EMAIL:j underscore miller at gmail dot com], got it?
        | Ship to [NAME:Wanda Pruitt], 12 Elm St, mobile [PHONE:07911 234567].
        | yeah it's [PHONE:four one five six four oh one nine nine two] any time
        | [NAME:Smith] said the server at [IP:91.198.174.192] was down.""",
    "fr": """Bonjour, [NAME:Mathieu Perrin] à l'appareil, rappelez-moi au [PHONE:06 45 12 78 90] svp.
        | Cordialement, [NAME:Sandrine Caillaux]
        | alors c'est [EMAIL:paul tiret dupuis arobase orange point fr] d'accord
        | mon portable c'est [PHONE:zéro sept quatre-vingt-un vingt-trois quarante-cinq zéro deux]
        | Virement à Mme [NAME:Ferrand], compte [IBAN:FR14 2004 1010 0505 0001 3M02 606].""",
    "de": """Hallo, hier ist [NAME:Sabine Krüger], Sie erreichen mich unter [PHONE:0176 55512345].
        | Mit freundlichen Grüßen, [NAME:Torsten Ahlers] | also [EMAIL:max punkt lang ät web punkt de] bitte
        | Überweisung an Herrn [NAME:Demir] auf [IBAN:DE02 1203 0000 0000 2020 51].
        | die nummer ist [PHONE:null eins sieben sechs zwölf vierunddreißig fünfzig null neun]""",
    "it": """Buongiorno, sono [NAME:Chiara Moretti], mi richiami al [PHONE:348 1234567].
        | Cordiali saluti, [NAME:Fabrizio Lo Monaco] | allora [EMAIL:sara punto villa chiocciola libero punto it]
        | Bonifico a [NAME:Rossi] su [IBAN:IT60 X054 2811 1010 0000 0123 456].
        | il cellulare è [PHONE:tre quattro otto dodici trentaquattro cinquantasei sette]""",
    "pt": """Oi, aqui é a [NAME:Fernanda Lopes], meu zap é [PHONE:(21) 98765-4321].
        | Atenciosamente, [NAME:Caio Brandão] | anota aí [EMAIL:ana underline reis arroba uol ponto com ponto br]
        | Falei com o [NAME:Wellington] ontem.
        | liga no [PHONE:onze nove oito sete seis cinco quatro três dois um meia]""",
    "es": """Buenas, soy [NAME:Rocío Jiménez], mi móvil es el [PHONE:655 12 34 56].
        | Un saludo, [NAME:Iker Etxeberria] | apunta [EMAIL:luis guion bajo vega arroba gmail punto com]
        | Transferencia a doña [NAME:Carmen Soler], cuenta [IBAN:ES91 2100 0418 4502 0005 1332].
        | es el [PHONE:seis cinco cinco doce treinta y cuatro cincuenta y seis]""",
    "zh": """您好，我是[NAME:孙丽华]，请回电[PHONE:139 1234 5678]。 | [NAME:马晓东]经理说明天开会。
        | 微信同号[PHONE:15012345678]，邮箱[EMAIL:sunlihua@163.com] | 电话是[PHONE:一三九 一二三四 五六七八]
        | 收件人：[NAME:何静]，地址北京市。""",
    "ja": """お世話になっております。[NAME:中村]です。[PHONE:080-1234-5678]までお願いします。
        | 担当は[NAME:松本 由美子]です。 | 連絡先は[PHONE:ゼロ三の一二三四の五六七八]です
        | [EMAIL:yumiko_m@docomo.ne.jp]に送ってください。 | [NAME:斎藤]様、ご確認ください。""",
}
"""Written when `pii.py` was done, and never used to better it: [KIND:what is planted]."""


def cases(language: str, count: int, seed: int = 0) -> Iterator[tuple[str, list[Planted]]]:
    """(sentence, what is planted in it as (kind, start, end)): `count` sentences of every kind, some spelled, and the
    language's look-alikes once each, in which nothing is planted."""
    rng = Random(f"{seed}:{language}")
    # A line that names no kind goes on where the last one ended.
    whole = re.sub(r"\n\s*\| ", " | ", _WRITTEN[language])
    lines = (line.split(":", 1) for line in whole.splitlines())
    frames = {k.strip(): [t.strip() for t in rest.split(" | ")] for k, rest in lines}
    for kind, written in frames.items():
        for _ in range(count):
            frame, value = rng.choice(written), _value(kind, language, rng)
            if kind in ("PHONE", "CARD", "EMAIL") and rng.random() < 0.5:
                frame, value = _spoken(kind, value, language)
            at = frame.index("{}")
            yield frame.format(value), [(kind, at, at + len(value))]
    for text in _LOOKALIKES[language].split(" | "):
        yield " ".join(text.strip("| \n").split()), []


def fresh(language: str) -> Iterator[tuple[str, list[Planted]]]:
    """The sentences of `FRESH`, each with what is planted in it."""
    for marked in FRESH[language].split(" | "):
        text, planted = "", list[Planted]()
        # An odd piece is a kind, the one after it its value.
        pieces = re.split(r"\[([A-Z]+):([^\]]+)\]", " ".join(marked.strip("| \n").split()))
        for plain, kind, value in zip(
            pieces[::3], [*pieces[1::3], ""], [*pieces[2::3], ""], strict=True
        ):
            text += plain
            if kind:
                planted.append((kind, len(text), len(text) + len(value)))
            text += value
        yield text, planted


def _spoken(kind: str, value: str, language: str) -> tuple[str, str]:
    phone, card, mail, at, dot = _SPOKEN[language]
    if kind == "EMAIL":
        gap = "" if language in DENSE else " "
        return mail, value.replace("@", f"{gap}{at}{gap}").replace(".", f"{gap}{dot}{gap}")
    said = digit_words(re.sub(r"\D", "", value), language)
    return (phone if kind == "PHONE" else card), said.replace(" ", "") if language == "zh" else said


def _value(kind: str, language: str, rng: Random) -> str:
    if kind == "NAME":
        return rng.choice(NAMES[language].split("|"))
    if kind == "EMAIL":
        user = rng.choice(("anna", "j.smith", "tanaka", "luc.martin", "wei88", "ana.costa"))
        site = rng.choice(("example", "mailbox", "unikoeln", "posta"))
        return f"{user}@{site}.{rng.choice(('com', 'de', 'org', 'jp'))}"
    if kind == "PHONE":
        shape = rng.choice(_PHONES[language].split(" | "))
        return "".join(str(rng.randrange(10)) if c == "#" else c for c in shape)
    if kind == "IP":
        return ".".join(
            str(rng.choice((81, 93, 151, 203)) if i == 0 else rng.randrange(20, 250))
            for i in range(4)
        )
    if kind == "CARD":
        return _card(rng)
    from stdnum import iban

    country, size = rng.choice((("DE", 18), ("NL", 10)))
    account = "".join(rng.choices("0123456789", k=size))
    body = f"ABNA{account}" if country == "NL" else account
    code = iban.calc_check_digits(f"{country}00{body}")
    whole = f"{country}{code}{body}"
    return whole if rng.random() < 0.5 else " ".join(re.findall(".{1,4}", whole))


def _card(rng: Random) -> str:
    from stdnum import luhn

    body = rng.choice(("4539", "5412", "4916")) + "".join(rng.choices("0123456789", k=11))
    digits = body + luhn.calc_check_digit(body)
    return rng.choice(("", " ", "-")).join(re.findall("....", digits))


def measure(
    find: Callable[[str, str], Iterable[Planted]],
    sentences: Callable[[str], Iterable[tuple[str, list[Planted]]]],
) -> dict[tuple[str, str], Counter[str]]:
    """(language, kind) -> how many were `planted`, `found` (covered whole by a finding of the kind), and how many
    findings were `right` (touch one of the kind) and `wrong`. `find(text, language)`
    gives (kind, start, end); `sentences(language)` is `fresh`, or `cases` with a count."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for language in LANGUAGES:
        for text, planted in sentences(language):
            found = list(find(text, language))
            for kind, start, end in planted:
                hit = any(k == kind and a <= start and b >= end for k, a, b in found)
                counts.setdefault((language, kind), Counter()).update(planted=1, found=int(hit))
            for kind, start, end in found:
                touches = any(k == kind and a < end and b > start for k, a, b in planted)
                counts.setdefault((language, kind), Counter())["right" if touches else "wrong"] += 1
    return counts
